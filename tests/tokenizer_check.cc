// Prints what runtime/tokenizer makes of texts, for comparison with the original library.
//
//   tokenizer_check FOLDER    reads lines from standard input and writes one for each:
//     {"text": ..., "added": "all" | "ordinary" | "none", "special": true | false}
//     -> {"ids": [...], "offsets": [[begin, end], ...], "text": ..., "all": ...}    offsets in characters
//     -> {"error": ...}
//   tokenizer_check FOLDER --exact            prints the tokenizer.json that does the same as the folder's tokenizer.model
//   tokenizer_check FOLDER --time FILE    tokenises the file's lines once and prints {"open_s", "bytes",
//   "tokens", "s"}
#include <chrono>
#include <ctime>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "ops/core/check.h"
#include "runtime/tokenizer/exact_tokenizer_json.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {
namespace {

using nlohmann::json;

double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

json answer(const Tokenizer& tokenizer, const json& request) {
  const std::string text = request.at("text");
  EncodeOptions options;
  const std::string added = request.value("added", "all");
  options.added_tokens = added == "all"        ? AddedTokens::kAll
                         : added == "ordinary" ? AddedTokens::kOrdinary
                                               : AddedTokens::kNone;
  options.post_processor = request.value("special", false);
  options.trim_offsets = true;
  const Encoding encoding = tokenizer.encode_with_ranges(text, options);
  std::vector<size_t> characters(text.size() + 1);
  size_t count = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (i > 0 && (static_cast<unsigned char>(text[i]) & 0xC0U) != 0x80U) ++count;
    characters[i] = count;
  }
  characters[text.size()] = text.empty() ? 0 : count + 1;
  json offsets = json::array();
  for (const TextRange& range : encoding.ranges)
    offsets.push_back({characters[range.begin], characters[range.end]});
  if (added == "ordinary" && !options.post_processor && tokenizer.encode(text) != encoding.ids)
    throw InternalError("encode() and encode_with_ranges() differ");
  return {{"ids", encoding.ids},
          {"offsets", offsets},
          {"text", tokenizer.decode(encoding.ids)},
          {"all", tokenizer.decode_all(encoding.ids)}};
}

int serve(const Tokenizer& tokenizer) {
  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);) {
    json out;
    try {
      out = answer(tokenizer, json::parse(line));
    } catch (const Error& error) {
      out = {{"error", error.what()}};
    }
    std::cout << out.dump() << '\n';
  }
  return 0;
}

int time(const Tokenizer& tokenizer, double open_s, double open_cpu_s, const char* path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line + "\n");
  size_t bytes = 0;
  size_t tokens = 0;
  const double start = now();
  const double cpu = processor_seconds();
  for (const std::string& line : lines) {
    bytes += line.size();
    tokens += tokenizer.encode(line).size();
  }
  const double seconds = now() - start;
  const double cpu_s = processor_seconds() - cpu;
  std::cout << json{{"open_s", open_s}, {"open_cpu_s", open_cpu_s},
                    {"bytes", bytes},   {"tokens", tokens},
                    {"s", seconds},     {"cpu_s", cpu_s}}
                   .dump()
            << '\n';
  return 0;
}

int exact(const Tokenizer& tokenizer, const std::string& folder) {
  const std::string path = folder + "/tokenizer.model";
  std::ifstream file(path, std::ios::binary);
  const std::string model{std::istreambuf_iterator<char>(file), {}};
  std::cout << exact_tokenizer_json(model, tokenizer, path);
  return 0;
}

}  // namespace
}  // namespace pesc

int main(int count, char** words) {
  try {
    const bool makes = count == 3 && std::string(words[2]) == "--exact";
    if (count != 2 && !makes && !(count == 4 && std::string(words[2]) == "--time")) {
      std::cerr << "usage: tokenizer_check FOLDER [--exact | --time FILE]\n";
      return 64;
    }
    const double start = pesc::now();
    const double cpu = pesc::processor_seconds();
    const auto tokenizer = pesc::open_tokenizer(words[1]);
    if (makes) return pesc::exact(*tokenizer, words[1]);
    const double open_s = pesc::now() - start;
    const double open_cpu_s = pesc::processor_seconds() - cpu;
    return count == 2 ? pesc::serve(*tokenizer) : pesc::time(*tokenizer, open_s, open_cpu_s, words[3]);
  } catch (const pesc::Error& error) {
    std::cerr << error.what() << '\n';
    return static_cast<int>(error.code());
  }
}
