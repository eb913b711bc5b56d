#include "runtime/data/long_rows.h"

#include <algorithm>
#include <cstdint>
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

// The number of tokens, of the first `most`, up to the end of the last answer that is whole in them; 0: none
// is. `sample` has more than `most` tokens.
int64_t end_of_last_whole_answer(const Sample& sample, int64_t most) {
  const auto learned = [&](int64_t token) {  // a label is the token behind it
    return token > 0 && sample.labels[static_cast<size_t>(token - 1)] != kUnsupervised;
  };
  int64_t end = most;
  while (learned(end) && learned(end - 1)) --end;  // an answer that goes on behind the cut
  while (end > 0 && !learned(end - 1)) --end;      // what is not learned behind the answer before
  return end;
}

// `sample` has more than `most` tokens and keeps so many of them at most.
void cut_row(Sample& sample, int64_t most, bool& inside) {
  const int64_t end = end_of_last_whole_answer(sample, most);
  inside = end == 0 && sample.labels[static_cast<size_t>(most - 1)] != kUnsupervised;
  sample.tokens.resize(static_cast<size_t>(end > 0 ? end : most));
  sample.labels.resize(sample.tokens.size());
  sample.labels.back() = kUnsupervised;
  sample.supervised = std::ssize(sample.labels) - std::ranges::count(sample.labels, kUnsupervised);
  sample.truncated = true;
}

}  // namespace

FittedRow fit_row(const RowEncoder& encoder, const Row& row, const LengthRules& rules, RowLosses* losses) {
  PESC_CHECK(rules.max_seq_length >= 2, "sequences of ", rules.max_seq_length, " tokens");
  const bool splits = row.turns.empty() && rules.long_text == LongText::kSplit;
  // One token more than fits says whether the answer before it ends there.
  const int64_t most = rules.max_seq_length;
  Sample sample = encoder.encode(row, splits ? INT64_MAX : most + 1, losses);
  FittedRow out;
  if (std::ssize(sample.tokens) <= most) {
    out.samples.push_back(std::move(sample));
  } else if (splits) {
    out.samples = split_text(sample, most);
    out.split = true;
  } else if (rules.on_long_row == OnLongRow::kCut) {
    cut_row(sample, most, out.cut_inside);
    out.samples.push_back(std::move(sample));
  }
  return out;
}

}  // namespace pesc
