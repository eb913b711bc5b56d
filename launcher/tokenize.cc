// pesc tokenize: what a model's tokenizer and its chat template make of texts and of training rows. JSON Lines
// in, a JSON string or a row a line; JSON Lines out, or with --show text for people. One rank, no experiment
// file.
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "launcher/command_line.h"
#include "launcher/help.h"
#include "launcher/input_lines.h"
#include "ops/core/check.h"
#include "runtime/chat/model_templates.h"
#include "runtime/data/row_encoder.h"
#include "runtime/data/show_row.h"
#include "runtime/data/special_token_files.h"
#include "runtime/terminal/terminal.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {
namespace {

using nlohmann::ordered_json;

std::unique_ptr<Tokenizer> open_model_tokenizer(const std::string& folder) {
  ModelConfig any;  // of the model nothing but its vocabulary would matter, which is not known
  any.vocab_size = std::numeric_limits<int32_t>::max();
  return open_tokenizer(folder, read_special_tokens(any, folder, folder).pieces());
}

std::string place_of_line(int64_t number) {
  return str_cat("standard input:", number);
}

// Names the place in what `work` refuses: neither the tokenizer nor the chat template knows it.
template <class Work>
auto at_place(const std::string& where, const Work& work) {
  try {
    return work();
  } catch (const DataError& error) {
    throw DataError(str_cat(where, ": ", error.what()));
  }
}

class LineTokenizer {
 public:
  LineTokenizer(const CommandLine& command)
      : tokenizer_(open_model_tokenizer(command.model)),
        folder_(command.model),
        special_(command.special),
        show_(command.show),
        marks_(uses_colour(STDOUT_FILENO) ? Marks::kColour : Marks::kBrackets) {}

  // What to print of one line.
  std::string of(const std::string& line, int64_t number) {
    const std::string where = place_of_line(number);
    const size_t first = line.find_first_not_of(" \t\r");
    if (first != std::string::npos && line[first] == '{') return of_row(line, where);
    const std::string text = text_of_line(line, where);
    return at_place(where, [&] { return of_text(text); });
  }

 private:
  static std::string text_of_line(const std::string& line, const std::string& where) {
    constexpr const char* kForms = "; a line is one JSON string, \"a text\", or a training row, {..}";
    ordered_json value;
    try {
      value = ordered_json::parse(line);
    } catch (const ordered_json::exception&) {
      throw DataError(str_cat(where, ": is no JSON", kForms));
    }
    if (!value.is_string()) throw DataError(str_cat(where, ": is ", value.type_name(), kForms));
    return value.get<std::string>();
  }

  // As the original library's encode(): added tokens are found, special ones too.
  std::string of_text(const std::string& text) const {
    EncodeOptions options;
    options.added_tokens = AddedTokens::kAll;
    options.post_processor = special_;
    const Encoding encoding = tokenizer_->encode_with_ranges(text, options);
    if (show_) return shown_row(*tokenizer_, encoding.ids, {}, marks_) + "\n";
    return ordered_json{{"ids", encoding.ids}}.dump() + "\n";
  }

  // As a run with the defaults of data.chat_template and data.train_on learns it, uncut.
  std::string of_row(const std::string& line, const std::string& where) {
    if (!encoder_) encoder_.emplace(*tokenizer_, open_templates({}, folder_, *tokenizer_, Links::kInside));
    const Row parsed = parse_any_row(line, where, Answers::kAll, encoder_->row_use());
    const RowText row = at_place(where, [&] { return encoder_->text_of(parsed); });
    if (show_) return shown_row(*tokenizer_, row.ids, row.learned, marks_) + "\n";
    ordered_json learned = ordered_json::array();
    for (const TokenRange& range : row.learned) learned.push_back({range.begin, range.end});
    return ordered_json{{"text", row.text}, {"ids", row.ids}, {"learned", learned}}.dump() + "\n";
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::string folder_;
  bool special_, show_;
  Marks marks_;
  std::optional<RowEncoder> encoder_;
};

void tokenize(const CommandLine& command) {
  LineTokenizer tokenizer(command);
  constexpr int kWait = 60;  // seconds; there is nothing else to do
  InputLines lines(STDIN_FILENO);
  int64_t number = 0;
  while (!lines.ended()) {
    const std::optional<std::string> line =
        at_place(place_of_line(number + 1), [&] { return lines.next(kWait); });
    if (!line) continue;
    const std::string out = tokenizer.of(*line, ++number);
    std::fwrite(out.data(), 1, out.size(), stdout);
  }
}

}  // namespace

int run_tokenize(const Process& process, const CommandLine& command) {
  rethrow_agreed(process.world, [&] {
    if (process.world.size() != 1)
      throw UsageError("pesc tokenize runs on one rank; start it without mpirun");
    if (command.model.empty()) {
      throw UsageError(
          str_cat("pesc tokenize needs --model FOLDER, which has a tokenizer.json or tokenizer.model",
                  see_help("tokenize")));
    }
    tokenize(command);
  });
  return 0;
}

}  // namespace pesc
