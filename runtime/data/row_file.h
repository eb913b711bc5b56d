// Files of rows: JSON Lines, or one JSON array (told apart by the first byte that is no space), compressed
// where the name ends in .gz or .zst. Read through a small buffer, a row at a time, so that neither a long
// file nor an endless line fills the memory.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/data/chat_row.h"
#include "runtime/data/row_texts.h"
#include "runtime/data/rows.h"

namespace pesc {

enum class OnBadRow { kFail, kSkip };

struct RowOptions {
  int64_t max_bytes = int64_t{16} << 20;  // of one row's JSON text; a longer one is a bad row
  OnBadRow on_bad_row = OnBadRow::kFail;
  Answers answers = Answers::kAll;
  RowUse use = RowUse::kPublished;
  int64_t max_messages = 8;    // rows that the report quotes
  std::string policy_field{};  // of the experiment, which sets on_bad_row: named where a bad row is refused
  RowColumns columns{};        // what the file calls the fields
};

struct RowsReport {
  int64_t rows = 0;                   // good ones
  int64_t bad = 0;                    // skipped ones
  int64_t empty = 0;                  // left out, their answer being empty
  std::vector<std::string> messages;  // of the first bad and empty ones: "file:line: what; skipped"
  RowFields fields;                   // of the good and empty ones
  // "PATH: fields that nothing reads: ..."; empty when there are none.
  std::string unused_warning;
};

// Gets each good row, and its place: "file:line", or "file:line (element 3)" of an array, elements counted
// from 0.
using RowCallback = std::function<void(Row&& row, const std::string& where)>;

// Blank lines, a byte order mark and a missing newline at the end are fine. With kFail the first bad row is
// thrown as DataError; with kSkip it is counted and left out. A row with an empty answer is left out in
// either case, but for Answers::kAllButLast, where it is thrown. What breaks the array itself (a missing
// comma, no closing bracket, text behind it) is a DataError in either case, since what follows cannot be told
// from it; and so is a file that is one object with the rows inside, {"train": [...]}, and compressed data
// that are damaged, cut off, or give a row of many times max_bytes. Throws DataError when
// there is no such file or it is not a regular one, IoError when it cannot be read. Errors of the callback
// pass through.
RowsReport for_each_row(const std::string& path, const RowOptions& options, const RowCallback& callback);

// The same in two parts, of which the first may be done for several rows at once.

// The text of a row parsed, or why it is no row.
struct ParsedRow {
  enum class State { kGood, kEmpty, kBad };
  State state = State::kBad;
  Row row;              // of a good one
  std::string problem;  // of others: "file:line: what"
  bool closed = false;  // of a bad one: its text ends with the bracket that closes an object
  RowFields fields;
};
[[nodiscard]] ParsedRow parse_row_text(const RawRow& text, const std::string& where,
                                       const RowOptions& options);

// The texts of the rows of a file, with the limits of the options.
[[nodiscard]] RowTexts open_row_texts(const std::string& path, const RowOptions& options);

// What is done with parsed rows, in their order.
class RowTally {
 public:
  // All three outlive it.
  RowTally(const std::string& path, const RowOptions& options, const RowTexts& texts)
      : path_(path), options_(options), texts_(texts) {}
  // Counts the row. False where it is left out. Throws as for_each_row.
  [[nodiscard]] bool take(const ParsedRow& row, const std::string& where);
  [[nodiscard]] RowsReport finish();

 private:
  void refuse_one_object(const ParsedRow& row, const std::string& where);
  void note(const std::string& what, const char* outcome);

  const std::string& path_;
  const RowOptions& options_;
  const RowTexts& texts_;
  RowsReport report_;
  bool looked_for_object_ = false;
};

[[nodiscard]] std::vector<Row> read_rows(const std::string& path, const RowOptions& options = {},
                                         RowsReport* report = nullptr);

}  // namespace pesc
