#include "runtime/data/long_rows.h"

#include <algorithm>
#include <utility>

#include "ops/core/check.h"

namespace pesc {
namespace {

std::vector<Sample> split_text(const Sample& text, int64_t max_seq_length) {
  std::vector<Sample> samples;
  const int64_t size = std::ssize(text.tokens);
  for (int64_t begin = 0; begin + 1 < size; begin += max_seq_length - 1) {
    const int64_t end = std::min(begin + max_seq_length, size);
    Sample part;
    part.tokens.assign(text.tokens.begin() + begin, text.tokens.begin() + end);
    part.labels.assign(text.labels.begin() + begin, text.labels.begin() + end);
    part.labels.back() = kUnsupervised;  // the next part has it
    part.supervised = std::ssize(part.labels) - std::ranges::count(part.labels, kUnsupervised);
    samples.push_back(std::move(part));
  }
  return samples;
}

}  // namespace

FittedRow fit_row(const RowEncoder& encoder, const Row& row, const LengthRules& rules, RowLosses* losses) {
  PESC_CHECK(rules.max_seq_length >= 2, "sequences of ", rules.max_seq_length, " tokens");
  const bool splits = row.turns.empty() && rules.long_text == LongText::kSplit;
  Sample sample = encoder.encode(row, splits ? INT64_MAX : rules.max_seq_length, losses);
  FittedRow out;
  if (splits && std::ssize(sample.tokens) > rules.max_seq_length) {
    out.samples = split_text(sample, rules.max_seq_length);
    out.split = true;
  } else if (!sample.truncated || rules.on_long_row == OnLongRow::kCut) {
    out.samples.push_back(std::move(sample));
  }
  return out;
}

}  // namespace pesc
