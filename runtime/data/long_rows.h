// The samples that a row makes, none of which is longer than a sequence may be: where a row is too long, it is
// cut, dropped or split.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/data/row_encoder.h"
#include "runtime/data/rows.h"
#include "runtime/data/template.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

// What a row of more than max_seq_length tokens does (data.on_long_row).
enum class OnLongRow { kCut, kDrop };
// What plain text (a corpus row) of more tokens does: the same, or it becomes several samples.
enum class LongText { kAsOtherRows, kSplit };

struct LengthRules {
  int64_t max_seq_length = 0;  // at least 2
  OnLongRow on_long_row = OnLongRow::kCut;
  LongText long_text = LongText::kAsOtherRows;
};

struct FittedRow {
  std::vector<Sample> samples;  // of a text that was split several; of a row that was dropped none
  bool split = false;
  bool cut_inside = false;  // cut, and within an answer or a text: its end is not learned
};

// A row that is cut ends behind the last of its answers that stands in its first max_seq_length tokens with
// its end of turn, so that every answer that is learned is learned whole; what else follows in them would be
// text without loss. Where not even the first answer does, and of plain text, it keeps its first
// max_seq_length tokens. Only answers that are to be learned count here.
//
// The samples of a text that is split have max_seq_length tokens, the last one what is left. Each but the
// first begins with the last token of the one before it, so that every token of the text is learned once.
// Throws as RowEncoder::encode.
[[nodiscard]] FittedRow fit_row(const RowEncoder& encoder, const Row& row, const LengthRules& rules,
                                RowLosses* losses = nullptr);
// With the published prompt.
[[nodiscard]] inline FittedRow fit_row(const Tokenizer& tokenizer, const Row& row, const LengthRules& rules,
                                       RowLosses* losses = nullptr) {
  return fit_row(RowEncoder(tokenizer), row, rules, losses);
}

}  // namespace pesc
