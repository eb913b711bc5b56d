// Rows that parse, and that the chat template or the tokenizer refuses: they are thrown, or left out and
// counted, as data.on_bad_row says.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "ops/core/check.h"
#include "runtime/chat/chat_template.h"
#include "runtime/data/row_file.h"
#include "runtime/data/rows.h"

namespace pesc {

// Of an error of RowEncoder: whether another row may pass. False for a mistake of the template itself.
[[nodiscard]] inline bool concerns_row(const DataError& error) {
  const auto* of_template = dynamic_cast<const TemplateError*>(&error);
  return of_template == nullptr || of_template->of_row;
}

class RefusedRows {
 public:
  // `policy_field` sets on_bad_row, and is named where a row is refused; empty: there is no such field.
  RefusedRows(OnBadRow on_bad_row, std::string policy_field)
      : on_bad_row_(on_bad_row), policy_field_(std::move(policy_field)) {}

  // Throws DataError with the row's place, or counts the row, which is to be left out.
  void add(const Row& row, const DataError& error) {
    std::string problem = row.where.empty() ? error.what() : str_cat(row.where, ": ", error.what());
    if (!concerns_row(error)) throw DataError(problem);
    if (on_bad_row_ == OnBadRow::kFail) {
      if (!policy_field_.empty()) problem += str_cat(" (", policy_field_, ": SKIP leaves such rows out)");
      throw DataError(problem);
    }
    if (rows_++ == 0) first_ = std::move(problem);
  }
  [[nodiscard]] int64_t rows() const { return rows_; }
  // "2 rows are left out, refused by the chat template or the tokenizer: f.jsonl:3: ..."
  [[nodiscard]] std::string text() const {
    return str_cat(rows_, rows_ == 1 ? " row is" : " rows are",
                   " left out, refused by the chat template or the tokenizer: ", first_);
  }

 private:
  OnBadRow on_bad_row_;
  std::string policy_field_;
  int64_t rows_ = 0;
  std::string first_;
};

}  // namespace pesc
