// pesc tokenize: the ids of texts, as a model's tokenizer gives them. JSON Lines in, one JSON string a line;
// JSON Lines out, one {"ids": [...]} for each. One rank, no experiment file.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "launcher/command_line.h"
#include "ops/core/check.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {
namespace {

using nlohmann::json;

std::string text_of_line(const std::string& line, int64_t number) {
  json value;
  try {
    value = json::parse(line);
  } catch (const json::exception&) {
    throw DataError(
        str_cat("standard input:", number, ": is no JSON; a line is one JSON string: \"a text\""));
  }
  if (!value.is_string()) {
    throw DataError(str_cat("standard input:", number, ": is ", value.type_name(),
                            "; a line is one JSON string: \"a text\""));
  }
  return value.get<std::string>();
}

// As the original library's encode(): added tokens are found, special ones too.
int tokenize(const Tokenizer& tokenizer, bool special) {
  EncodeOptions options;
  options.added_tokens = AddedTokens::kAll;
  options.post_processor = special;
  std::ios::sync_with_stdio(false);
  int64_t number = 0;
  for (std::string line; std::getline(std::cin, line);) {
    const std::string text = text_of_line(line, ++number);
    const std::string out = json{{"ids", tokenizer.encode_with_ranges(text, options).ids}}.dump() + "\n";
    std::fwrite(out.data(), 1, out.size(), stdout);
  }
  if (std::cin.bad()) throw IoError("standard input cannot be read");
  return 0;
}

}  // namespace

int run_tokenize(const Process& process, const CommandLine& command) {
  int code = 0;
  rethrow_agreed(process.world, [&] {
    if (process.world.size() != 1)
      throw UsageError("pesc tokenize runs on one rank; start it without mpirun");
    if (command.model.empty()) {
      throw UsageError(str_cat(
          "pesc tokenize needs --model FOLDER, which has a tokenizer.model or tokenizer.json\n", usage()));
    }
    code = tokenize(*open_tokenizer(command.model), command.special);
  });
  return code;
}

}  // namespace pesc
