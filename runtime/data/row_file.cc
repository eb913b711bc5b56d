#include "runtime/data/row_file.h"

#include <string_view>
#include <utility>

#include "ops/core/check.h"
#include "runtime/data/one_object.h"

namespace pesc {

RowTexts open_row_texts(const std::string& path, const RowOptions& options) {
  // A row is not read to its end where it is too long to be one.
  constexpr int64_t kSkippedRows = 16;
  return {path, options.max_bytes,
          options.on_bad_row == OnBadRow::kFail ? options.max_bytes : kSkippedRows * options.max_bytes};
}

ParsedRow parse_row_text(const RawRow& text, const std::string& where, const RowOptions& options) {
  ParsedRow out;
  const bool too_long = text.bytes > options.max_bytes;
  try {
    if (too_long) {
      throw DataError(
          str_cat(where, ": the row has ", text.bytes, " bytes, the limit is ", options.max_bytes));
    }
    out.row = parse_any_row(text.text, where, options.answers, options.use, &out.fields, options.columns);
    out.state = ParsedRow::State::kGood;
  } catch (const EmptyAnswer& error) {
    // A question that waits for an answer is not passed over.
    if (options.answers == Answers::kAllButLast) throw;
    out.state = ParsedRow::State::kEmpty;
    out.problem = error.what();
  } catch (const DataError& error) {
    out.problem = error.what();
    const std::string_view line = text.text;
    const size_t last = line.find_last_not_of(" \t\r");
    out.closed = last != std::string_view::npos && line[last] == '}' && !too_long;
  }
  return out;
}

bool RowTally::take(const ParsedRow& row, const std::string& where) {
  report_.fields.unused.add(row.fields.unused);
  report_.fields.optional.add(row.fields.optional);
  switch (row.state) {
    case ParsedRow::State::kGood:
      ++report_.rows;
      return true;
    case ParsedRow::State::kEmpty:
      ++report_.empty;
      note(row.problem, "; dropped");
      return false;
    case ParsedRow::State::kBad:
      break;
  }
  refuse_one_object(row, where);
  if (options_.on_bad_row == OnBadRow::kFail) {
    if (options_.policy_field.empty()) throw DataError(row.problem);
    throw DataError(str_cat(row.problem, " (", options_.policy_field, ": SKIP leaves such rows out)"));
  }
  ++report_.bad;
  note(row.problem, "; skipped");
  return false;
}

// Looked for where the first of the lines is no row; in either case an error, since there are no other rows.
void RowTally::refuse_one_object(const ParsedRow& row, const std::string& where) {
  if (!texts_.in_lines() || looked_for_object_ || report_.rows + report_.empty > 0) return;
  looked_for_object_ = true;
  const auto lines = row.closed ? ObjectLines::kOne : ObjectLines::kSeveral;
  if (const std::string text = about_one_object(path_, lines); !text.empty())
    throw DataError(str_cat(where, ": ", text));
}

void RowTally::note(const std::string& what, const char* outcome) {
  if (std::ssize(report_.messages) < options_.max_messages) report_.messages.push_back(what + outcome);
}

RowsReport RowTally::finish() {
  if (!report_.fields.unused.empty()) {
    report_.unused_warning = str_cat(path_, ": fields that nothing reads: ", report_.fields.unused.text(),
                                     "; what stands in them is neither seen nor learned");
  }
  return std::move(report_);
}

RowsReport for_each_row(const std::string& path, const RowOptions& options, const RowCallback& callback) {
  RowTexts texts = open_row_texts(path, options);
  RowTally tally(path, options, texts);
  for (RawRow text; texts.next(text);) {
    const std::string where = place_of(path, text);
    ParsedRow row = parse_row_text(text, where, options);
    if (tally.take(row, where)) callback(std::move(row.row), where);
  }
  return tally.finish();
}

std::vector<Row> read_rows(const std::string& path, const RowOptions& options, RowsReport* report) {
  std::vector<Row> rows;
  RowsReport result = for_each_row(path, options, [&](Row&& row, const std::string& where) {
    rows.push_back(std::move(row));
    rows.back().where = where;
  });
  if (report != nullptr) *report = std::move(result);
  return rows;
}

}  // namespace pesc
