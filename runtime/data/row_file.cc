// The array reader finds where an element ends by counting brackets outside strings; whether the element is
// JSON at all is for parse_any_row to say.
#include "runtime/data/row_file.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <string_view>
#include <utility>

#include "ops/core/check.h"
#include "runtime/data/json_mistake.h"
#include "runtime/data/one_object.h"
#include "runtime/data/row_bytes.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr int kEnd = -1;

bool is_space(int c) {
  return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

// The bytes of a file one after another, with the line they stand in.
class ByteReader {
 public:
  explicit ByteReader(const std::string& path) : bytes_(open_row_bytes(path)), block_(kBlock) {
    if (compression_of(path) == Compression::kNone) return;
    fill();
    const std::string_view first(block_.data(), std::min(size_, kFirstBytes));
    check_first_bytes(first, path + " (decompressed)", FileUse::kRows);
  }

  [[nodiscard]] int peek() {
    if (at_ == size_ && !fill()) return kEnd;
    return static_cast<unsigned char>(block_[at_]);
  }
  int get() {
    const int c = peek();
    if (c == kEnd) return c;
    ++at_;
    if (c == '\n') ++line_;
    return c;
  }
  [[nodiscard]] int64_t line() const { return line_; }  // from 1
  [[nodiscard]] uint64_t bytes_read() const { return bytes_->bytes_read(); }
  [[nodiscard]] uint64_t file_size() const { return bytes_->file_size(); }

  std::function<void()> on_block;  // before each block but the first

 private:
  static constexpr size_t kBlock = size_t{1} << 18;

  bool fill() {
    if (ended_) return false;
    if (size_ > 0 && on_block) on_block();
    at_ = 0;
    size_ = bytes_->read(block_);
    ended_ = size_ == 0;
    return !ended_;
  }

  std::unique_ptr<RowBytes> bytes_;
  std::vector<char> block_;
  size_t size_ = 0;  // of the block, as far as it is filled
  size_t at_ = 0;
  bool ended_ = false;
  int64_t line_ = 1;
};

// The text of one row, up to a limit; beyond it the bytes are only counted.
class RowText {
 public:
  explicit RowText(int64_t limit) : limit_(static_cast<size_t>(limit)) {}
  void clear() {
    text_.clear();
    size_ = 0;
  }
  void add(int c) {
    ++size_;
    if (text_.size() < limit_) text_ += static_cast<char>(c);
  }
  [[nodiscard]] bool too_long() const { return size_ > limit_; }
  [[nodiscard]] size_t size() const { return size_; }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  size_t limit_;
  size_t size_ = 0;
  std::string text_;
};

class RowFile {
 public:
  RowFile(const std::string& path, const RowOptions& options, const RowCallback& callback)
      : path_(path), options_(options), callback_(callback), in_(path), text_(options.max_bytes) {
    PESC_CHECK(options.max_bytes > 0);
    if (compression_of(path) != Compression::kNone)
      most_bytes_ =
          options.on_bad_row == OnBadRow::kFail ? options.max_bytes : kSkippedRows * options.max_bytes;
    if (options.progress) in_.on_block = [this] { tell_progress(); };
  }

  RowsReport read() {
    skip_byte_order_mark();
    skip_spaces();
    if (in_.peek() == '[') {
      read_array();
    } else {
      in_lines_ = true;
      read_lines();
    }
    if (!report_.fields.unused.empty()) {
      report_.unused_warning = str_cat(path_, ": fields that nothing reads: ", report_.fields.unused.text(),
                                       "; what stands in them is neither seen nor learned");
    }
    return std::move(report_);
  }

 private:
  using Clock = std::chrono::steady_clock;

  // A compressed file may be a thousand times as long as it looks: a row is not read to its end where it is
  // too long to be one, nor is white space that long.
  static constexpr int64_t kSkippedRows = 16;
  void check_length(int64_t bytes) {
    if (bytes <= most_bytes_) return;
    throw DataError(str_cat(path_, ":", in_.line(), ": the row has more than ", most_bytes_,
                            " bytes and no end; it may have ", options_.max_bytes));
  }
  void add(int c) {
    text_.add(c);
    check_length(static_cast<int64_t>(text_.size()));
  }
  void skip_spaces() {
    for (int64_t n = 1; is_space(in_.peek()); ++n) {
      in_.get();
      check_length(n);
    }
  }

  void tell_progress() {
    const Clock::time_point now = Clock::now();
    if (std::chrono::duration<double>(now - told_).count() < options_.progress_seconds) return;
    told_ = now;
    options_.progress(str_cat(path_, ": ", in_.bytes_read() >> 20, " of ", in_.file_size() >> 20,
                              " MB read, ", report_.rows, " rows"));
  }

  void skip_byte_order_mark() {
    // Anything else that begins with 0xEF is no JSON and is refused as the first row.
    if (in_.peek() != 0xEF) return;
    for (const int expected : {0xEF, 0xBB, 0xBF}) {
      if (in_.get() != expected)
        throw DataError(str_cat(
            path_, ":1: begins with neither JSON nor a byte order mark; give a file of JSON in UTF-8"));
    }
  }

  void row(const std::string& where) {
    Row row;
    try {
      if (text_.too_long()) {
        throw DataError(
            str_cat(where, ": the row has ", text_.size(), " bytes, the limit is ", options_.max_bytes));
      }
      row = parse_any_row(text_.text(), where, options_.answers, options_.use, &report_.fields,
                          options_.columns);
    } catch (const EmptyAnswer& error) {
      // A question that waits for an answer is not passed over.
      if (options_.answers == Answers::kAllButLast) throw;
      ++report_.empty;
      note(error.what(), "; dropped");
      return;
    } catch (const DataError& error) {
      refuse_one_object(where);
      if (options_.on_bad_row == OnBadRow::kFail) {
        if (options_.policy_field.empty()) throw;
        throw DataError(str_cat(error.what(), " (", options_.policy_field, ": SKIP leaves such rows out)"));
      }
      ++report_.bad;
      note(error.what(), "; skipped");
      return;
    }
    ++report_.rows;
    callback_(std::move(row), where);
  }

  // Looked for where the first of the lines is no row; in either case an error, since there are no other
  // rows.
  void refuse_one_object(const std::string& where) {
    if (!in_lines_ || looked_for_object_ || report_.rows + report_.empty > 0) return;
    looked_for_object_ = true;
    const std::string_view line = text_.text();
    const size_t last = line.find_last_not_of(" \t\r");
    const bool closed = last != std::string_view::npos && line[last] == '}' && !text_.too_long();
    const auto lines = closed ? ObjectLines::kOne : ObjectLines::kSeveral;
    if (const std::string text = about_one_object(path_, lines); !text.empty())
      throw DataError(str_cat(where, ": ", text));
  }

  void note(const std::string& what, const char* outcome) {
    if (std::ssize(report_.messages) < options_.max_messages) report_.messages.push_back(what + outcome);
  }

  void read_lines() {
    while (in_.peek() != kEnd) {
      const int64_t line = in_.line();
      text_.clear();
      bool blank = true;
      for (int c = in_.get(); c != '\n' && c != kEnd; c = in_.get()) {
        add(c);
        blank = blank && is_space(c);
      }
      if (!blank) row(str_cat(path_, ":", line));
    }
  }

  [[noreturn]] void broken_array(const std::string& what) {
    throw DataError(str_cat(path_, ":", in_.line(), ": ", what));
  }

  // What stands next, for a message.
  std::string next_text() {
    std::string text;
    for (int i = 0; i < 40 && in_.peek() != kEnd && in_.peek() != '\n'; ++i)
      text += static_cast<char>(in_.get());
    return in_quotes(text, kCited);
  }

  void read_array() {
    in_.get();  // '['
    skip_spaces();
    for (int64_t index = 0; index > 0 || in_.peek() != ']'; ++index) {
      const std::string where = str_cat(path_, ":", in_.line(), " (element ", index, ")");
      if (in_.peek() == ',' || in_.peek() == ']')
        broken_array(
            str_cat("element ", index, " of the array is missing: a comma stands before ", next_text()));
      read_element();
      skip_spaces();
      // Looked at before the row is taken: an element that is cut off by the end of the file is no row.
      if (in_.peek() != ',' && in_.peek() != ']') {
        broken_array(in_.peek() == kEnd
                         ? str_cat("the array ends in or after element ", index, " without \"]\"")
                         : str_cat("\",\" or \"]\" expected after element ", index, " of the array, not ",
                                   next_text()));
      }
      row(where);
      if (in_.peek() == ']') break;
      in_.get();  // ','
      skip_spaces();
    }
    in_.get();  // ']'
    skip_spaces();
    if (in_.peek() != kEnd) broken_array(str_cat("there is text behind the end of the array: ", next_text()));
  }

  // One value: to its closing bracket or quote; a number or word up to a space, comma or bracket.
  void read_element() {
    text_.clear();
    int64_t depth = 0;
    bool quoted = false;
    const bool word = in_.peek() != '{' && in_.peek() != '[' && in_.peek() != '"';
    while (in_.peek() != kEnd) {
      if (word && (is_space(in_.peek()) || in_.peek() == ',' || in_.peek() == ']')) return;
      const int c = in_.get();
      add(c);
      if (quoted) {
        if (c == '\\' && in_.peek() != kEnd) add(in_.get());
        if (c == '"') quoted = false;
      } else if (c == '"') {
        quoted = true;
      } else if (c == '{' || c == '[') {
        ++depth;
      } else if (c == '}' || c == ']') {
        --depth;
      }
      if (!word && !quoted && depth <= 0) return;
    }
  }

  const std::string& path_;
  const RowOptions& options_;
  const RowCallback& callback_;
  ByteReader in_;
  RowText text_;
  RowsReport report_;
  int64_t most_bytes_ = INT64_MAX;  // to be read of a row
  bool in_lines_ = false;
  bool looked_for_object_ = false;
  Clock::time_point told_ = Clock::now();
};

}  // namespace

RowsReport for_each_row(const std::string& path, const RowOptions& options, const RowCallback& callback) {
  return RowFile(path, options, callback).read();
}

std::vector<Row> read_rows(const std::string& path, const RowOptions& options, RowsReport* report) {
  std::vector<Row> rows;
  RowsReport result =
      for_each_row(path, options, [&](Row&& row, const std::string&) { rows.push_back(std::move(row)); });
  if (report != nullptr) *report = std::move(result);
  return rows;
}

}  // namespace pesc
