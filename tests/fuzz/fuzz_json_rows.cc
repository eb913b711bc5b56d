// libFuzzer target: any bytes, taken as one row and as a file of rows, are either refused with a DataError or
// give rows that keep the promises of runtime/data/rows.h; a row written out in the published format reads
// back as itself.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "ops/core/check.h"
#include "runtime/data/chat_row.h"
#include "runtime/data/row_file.h"
#include "runtime/data/rows.h"
#include "runtime/text/utf8.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void check_text(const std::string& text) {
  require(pesc::valid_utf8_prefix(text) == text.size());
  require(text.find('\0') == std::string::npos);
}

void check_row(const pesc::Row& row) {
  require(row.turns.empty() != row.corpus.empty());
  check_text(row.tag);
  check_text(row.system);
  check_text(row.corpus);
  for (const pesc::Turn& turn : row.turns) {
    check_text(turn.prompt);
    check_text(turn.answer);
    require(!turn.answer.empty());
  }
}

std::string published(const pesc::Row& row) {
  nlohmann::json out = {{"dataset", row.tag}};
  if (!row.corpus.empty()) {
    out["corpus"] = row.corpus;
  } else {
    out["instruction"] = row.system;
    out["conversation"] = nlohmann::json::array();
    for (const pesc::Turn& turn : row.turns) {
      out["conversation"].push_back({{"input", turn.prompt}, {"output", turn.answer}});
    }
  }
  return out.dump();
}

bool same(const pesc::Row& a, const pesc::Row& b) {
  bool equal =
      a.tag == b.tag && a.system == b.system && a.corpus == b.corpus && a.turns.size() == b.turns.size();
  for (size_t i = 0; equal && i < a.turns.size(); ++i) {
    equal = a.turns[i].prompt == b.turns[i].prompt && a.turns[i].answer == b.turns[i].answer;
  }
  return equal;
}

void try_row(std::string_view text) {
  try {
    const pesc::Row row = pesc::parse_row(text, "input:1");
    check_row(row);
    require(same(pesc::parse_row(published(row), "again:1"), row));
  } catch (const pesc::DataError& error) {
    require(std::string_view(error.what()).starts_with("input:1"));
  }
}

void try_conversation(std::string_view text, pesc::RowUse use) {
  try {
    const pesc::Row row = pesc::parse_any_row(text, "input:1", pesc::Answers::kAll, use);
    require(row.turns.empty() != row.corpus.empty());
    require((row.chat != nullptr) == (use == pesc::RowUse::kTemplate && row.corpus.empty()));
  } catch (const pesc::DataError& error) {
    require(std::string_view(error.what()).starts_with("input:1"));
  }
}

// A file in memory, written anew for each input.
void try_file(std::string_view text, pesc::OnBadRow on_bad_row) {
  static const int fd = ::memfd_create("rows", MFD_CLOEXEC);
  static const std::string path = "/proc/self/fd/" + std::to_string(fd);
  require(fd >= 0 && ::ftruncate(fd, 0) == 0);
  require(::pwrite(fd, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
  try {
    pesc::RowOptions options;
    options.on_bad_row = on_bad_row;
    options.max_bytes = 512;
    int64_t rows = 0;
    const pesc::RowsReport report =
        pesc::for_each_row(path, options, [&](pesc::Row&& row, const std::string& where) {
          check_row(row);
          require(where.starts_with(path));
          ++rows;
        });
    require(report.rows == rows);
    require(on_bad_row == pesc::OnBadRow::kSkip || report.bad == 0);
    require(static_cast<int64_t>(report.messages.size()) <= options.max_messages);
  } catch (const pesc::DataError& error) {
    require(std::string_view(error.what()).starts_with(path));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try_row(text);
  for (const pesc::RowUse use : {pesc::RowUse::kPublished, pesc::RowUse::kTemplate})
    try_conversation(text, use);
  // Opening a file costs more than the rest: one way of reading it per input.
  try_file(text, size % 2 == 0 ? pesc::OnBadRow::kFail : pesc::OnBadRow::kSkip);
  return 0;
}
