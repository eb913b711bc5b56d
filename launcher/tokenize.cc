// pesc tokenize: what a model's tokenizer and its chat template make of texts and of training rows. JSON Lines
// in, a JSON string or a row a line; JSON Lines out, or with --show text for people. One rank, no experiment
// file.
#include <glog/logging.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "launcher/command_line.h"
#include "launcher/help.h"
#include "launcher/input_lines.h"
#include "ops/core/check.h"
#include "runtime/chat/model_templates.h"
#include "runtime/data/row_encoder.h"
#include "runtime/data/show_row.h"
#include "runtime/data/special_token_files.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/terminal/terminal.h"
#include "runtime/text/json_mistake.h"
#include "runtime/text/printable.h"
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

// Of a file that is no JSON Lines the first line says what it is, as the first bytes of a file of rows do.
void check_first_line(std::string_view line, const std::string& where) {
  if (line.empty()) return;
  if (const std::string kind = other_kind(line.substr(0, kFirstBytes), FileUse::kJson); !kind.empty())
    throw DataError(str_cat(where, ": the input ", kind));
}

// The quote that ends the string at the begin of `line`, or npos.
size_t closing_quote(std::string_view line, size_t begin) {
  for (size_t i = begin + 1; i < line.size(); ++i) {
    if (line[i] == '\\') {
      ++i;
    } else if (line[i] == '"') {
      return i;
    }
  }
  return std::string_view::npos;
}

// What is wrong with a line that is no JSON.
std::string mistake_of_line(std::string_view line, const ordered_json::parse_error& error) {
  const size_t first = line.find_first_not_of(" \t\r");
  if (line[first] != '"' && line[first] != '\'') return str_cat("it begins with ", in_quotes(line, kCited));
  const size_t end = line[first] == '"' ? closing_quote(line, first) : std::string_view::npos;
  if (end != std::string_view::npos && error.byte > end + 1)
    return str_cat(in_quotes(line.substr(line.find_first_not_of(" \t\r", end + 1)), kCited),
                   " stands behind the string");
  return json_mistake(line, error.byte, error.what());
}

class LineTokenizer {
 public:
  LineTokenizer(const CommandLine& command)
      : tokenizer_(open_model_tokenizer(command.model)),
        folder_(command.model),
        special_(command.special),
        show_(command.show),
        marks_(uses_colour(STDOUT_FILENO) ? Marks::kColour : Marks::kBrackets) {}

  // What to print of one line; nothing of one without text, which files of rows may have too.
  std::string of(std::string line, int64_t number) {
    const std::string where = place_of_line(number);
    if (number == 1) {
      check_first_line(line, where);
      line.erase(0, line.size() - without_byte_order_mark(line).size());
    }
    const size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos) return "";
    if (line[first] == '{') return of_row(line, where);
    const std::string text = text_of_line(line, where);
    return at_place(where, [&] { return of_text(text); });
  }

  // Fields of the rows that nothing has read.
  [[nodiscard]] const FieldCounts& unused() const { return fields_.unused; }

 private:
  static std::string text_of_line(const std::string& line, const std::string& where) {
    constexpr const char* kForms = "; a line is one JSON string, \"a text\", or a training row, {..}";
    // The JSON reader would take a zero byte for the end of its input and accept anything behind it.
    if (const size_t at = line.find('\0'); at != std::string::npos)
      throw DataError(str_cat(where, ": holds a NUL byte (byte ", at + 1, ")"));
    ordered_json value;
    try {
      value = ordered_json::parse(line);
    } catch (const ordered_json::parse_error& error) {
      throw DataError(str_cat(where, ": is not valid JSON at byte ", error.byte, ": ",
                              mistake_of_line(line, error), kForms));
    } catch (const ordered_json::exception& error) {
      throw DataError(str_cat(where, ": is not valid JSON: ", printable(error.what()), kForms));
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
    const Row parsed = parse_any_row(line, where, Answers::kAll, encoder_->row_use(), &fields_);
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
  RowFields fields_;
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
    if (std::ferror(stdout) != 0) return;  // nobody reads on; the exit code says so
  }
  if (!tokenizer.unused().empty()) {
    LOG(WARNING) << "standard input: fields that nothing reads: " << tokenizer.unused().text()
                 << "; what stands in them is neither seen nor learned";
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
