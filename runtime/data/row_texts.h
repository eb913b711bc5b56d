// The texts of the rows of a file, one after another and not yet parsed: JSON Lines, or the elements of one
// JSON array (told apart by the first byte that is no space). The end of an element is found by counting
// brackets outside strings; whether it is JSON at all is for the parser to say.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace pesc {

struct RawRow {
  std::string text;      // of a row beyond the limit its first bytes
  int64_t bytes = 0;     // of all of the row
  int64_t line = 0;      // in which it begins, from 1
  int64_t element = -1;  // of an array, from 0; -1: the row is a line
};

// "file:line", or "file:line (element 3)".
[[nodiscard]] std::string place_of(const std::string& path, const RawRow& row);

class RowTexts {
 public:
  // Of a row `max_bytes` bytes are kept. A compressed file may be a thousand times as long as it looks: there a
  // row of more than `most_bytes` bytes, or as much white space, is a DataError. Throws DataError when there is
  // no such file or it is not a regular one, IoError when it cannot be read.
  RowTexts(const std::string& path, int64_t max_bytes, int64_t most_bytes);
  ~RowTexts();
  RowTexts(const RowTexts&) = delete;
  RowTexts& operator=(const RowTexts&) = delete;

  // The next row; false at the end. Blank lines, a byte order mark and a missing newline at the end are fine.
  // Throws DataError for what breaks the array itself (a missing comma, no closing bracket, text behind it) or
  // the compressed data, IoError.
  [[nodiscard]] bool next(RawRow& row);

  [[nodiscard]] bool in_lines() const;
  [[nodiscard]] uint64_t bytes_read() const;  // of the file, compressed as it is
  [[nodiscard]] uint64_t file_size() const;

 private:
  class Reader;
  std::unique_ptr<Reader> reader_;
};

}  // namespace pesc
