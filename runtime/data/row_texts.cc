#include "runtime/data/row_texts.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/core/check.h"
#include "runtime/data/row_bytes.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/text/json_mistake.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr int kFileEnd = -1;
constexpr std::string_view kRowSpaces = " \t\r\n";

bool is_space(int c) {
  return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

}  // namespace

namespace row_texts {

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
    if (at_ == size_ && !fill()) return kFileEnd;
    return static_cast<unsigned char>(block_[at_]);
  }
  int get() {
    const int c = peek();
    if (c == kFileEnd) return c;
    ++at_;
    if (c == '\n') ++line_;
    return c;
  }
  // The bytes that are there as far as the end of the line, whose '\n' is not one of them. Empty at the end of
  // the line and of the file. Valid until the next call.
  [[nodiscard]] std::string_view take_of_line() {
    if (peek() == kFileEnd) return {};
    const std::string_view rest(block_.data() + at_, size_ - at_);
    const std::string_view part = rest.substr(0, rest.find('\n'));
    at_ += part.size();
    return part;
  }
  [[nodiscard]] int64_t line() const { return line_; }  // from 1
  [[nodiscard]] uint64_t bytes_read() const { return bytes_->bytes_read(); }
  [[nodiscard]] uint64_t file_size() const { return bytes_->file_size(); }

 private:
  static constexpr size_t kBlock = size_t{1} << 18;

  bool fill() {
    if (ended_) return false;
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

}  // namespace row_texts

using row_texts::ByteReader;

std::string place_of(const std::string& path, const RawRow& row) {
  std::string place = path + ":" + std::to_string(row.line);
  if (row.element >= 0) place += " (element " + std::to_string(row.element) + ")";
  return place;
}

class RowTexts::Reader {
 public:
  Reader(const std::string& path, int64_t max_bytes, int64_t most_bytes)
      : path_(path), in_(path), max_bytes_(max_bytes) {
    PESC_CHECK(max_bytes > 0 && most_bytes >= max_bytes, max_bytes, " of ", most_bytes, " bytes");
    if (compression_of(path) != Compression::kNone) most_bytes_ = most_bytes;
    skip_byte_order_mark();
    skip_spaces();
    in_lines_ = in_.peek() != '[';
    if (!in_lines_) in_.get();
  }

  bool next(RawRow& row) {
    row.text.clear();
    row.bytes = 0;
    row.element = -1;
    return in_lines_ ? next_line(row) : next_element(row);
  }

  ByteReader& in() { return in_; }
  [[nodiscard]] bool in_lines() const { return in_lines_; }

 private:
  void check_length(int64_t bytes) {
    if (bytes <= most_bytes_) return;
    throw DataError(str_cat(path_, ":", in_.line(), ": the row has more than ", most_bytes_,
                            " bytes and no end; it may have ", max_bytes_));
  }
  // Beyond the limit bytes are only counted.
  void add(std::string_view part, RawRow& row) {
    row.text += part.substr(0, static_cast<size_t>(max_bytes_) - row.text.size());
    row.bytes += std::ssize(part);
    check_length(row.bytes);
  }
  void add(int c, RawRow& row) {
    const char byte = static_cast<char>(c);
    if (++row.bytes <= max_bytes_) row.text += byte;
    check_length(row.bytes);
  }
  void skip_spaces() {
    for (int64_t n = 1; is_space(in_.peek()); ++n) {
      in_.get();
      check_length(n);
    }
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

  bool next_line(RawRow& row) {
    while (in_.peek() != kFileEnd) {
      row.line = in_.line();
      bool blank = true;
      while (in_.peek() != '\n' && in_.peek() != kFileEnd) {
        const std::string_view part = in_.take_of_line();
        blank = blank && part.find_first_not_of(kRowSpaces) == std::string_view::npos;
        add(part, row);
      }
      in_.get();  // '\n'
      if (!blank) return true;
      row.text.clear();
      row.bytes = 0;
    }
    return false;
  }

  [[noreturn]] void broken_array(const std::string& what) {
    throw DataError(str_cat(path_, ":", in_.line(), ": ", what));
  }

  // What stands next, for a message.
  std::string next_text() {
    std::string text;
    for (int i = 0; i < 40 && in_.peek() != kFileEnd && in_.peek() != '\n'; ++i)
      text += static_cast<char>(in_.get());
    return in_quotes(text, kCited);
  }

  // Stands behind the '[', or behind an element.
  bool next_element(RawRow& row) {
    skip_spaces();
    if (index_ > 0 && in_.peek() == ',') {
      in_.get();
      skip_spaces();
    } else if (in_.peek() == ']') {
      end_array();
      return false;
    } else if (ended_) {
      return false;
    }
    row.line = in_.line();
    row.element = index_;
    if (in_.peek() == ',' || in_.peek() == ']')
      broken_array(
          str_cat("element ", index_, " of the array is missing: a comma stands before ", next_text()));
    read_element(row);
    skip_spaces();
    // Looked at before the row is taken: an element that is cut off by the end of the file is no row.
    if (in_.peek() != ',' && in_.peek() != ']') {
      broken_array(in_.peek() == kFileEnd
                       ? str_cat("the array ends in or after element ", index_, " without \"]\"")
                       : str_cat("\",\" or \"]\" expected after element ", index_, " of the array, not ",
                                 next_text()));
    }
    ++index_;
    return true;
  }

  void end_array() {
    in_.get();  // ']'
    ended_ = true;
    skip_spaces();
    if (in_.peek() != kFileEnd)
      broken_array(str_cat("there is text behind the end of the array: ", next_text()));
  }

  // One value: to its closing bracket or quote; a number or word up to a space, comma or bracket.
  void read_element(RawRow& row) {
    int64_t depth = 0;
    bool quoted = false;
    const bool word = in_.peek() != '{' && in_.peek() != '[' && in_.peek() != '"';
    while (in_.peek() != kFileEnd) {
      if (word && (is_space(in_.peek()) || in_.peek() == ',' || in_.peek() == ']')) return;
      const int c = in_.get();
      add(c, row);
      if (quoted) {
        if (c == '\\' && in_.peek() != kFileEnd) add(in_.get(), row);
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

  const std::string path_;
  ByteReader in_;
  int64_t max_bytes_;
  int64_t most_bytes_ = INT64_MAX;
  bool in_lines_ = false;
  bool ended_ = false;  // the array
  int64_t index_ = 0;   // of its next element
};

RowTexts::RowTexts(const std::string& path, int64_t max_bytes, int64_t most_bytes)
    : reader_(std::make_unique<Reader>(path, max_bytes, most_bytes)) {}

RowTexts::~RowTexts() = default;

bool RowTexts::next(RawRow& row) {
  return reader_->next(row);
}

bool RowTexts::in_lines() const {
  return reader_->in_lines();
}

uint64_t RowTexts::bytes_read() const {
  return reader_->in().bytes_read();
}

uint64_t RowTexts::file_size() const {
  return reader_->in().file_size();
}

}  // namespace pesc
