#include "runtime/data/template.h"

#include <algorithm>
#include <string>

#include "ops/core/check.h"

namespace pesc {
namespace {

// A piece of the row: its tokens, and whether they are learned.
enum class Learn { kNo, kYes };

// Calls emit(tokens, Learn) for each piece up to the answer of the last turn.
template <class Emit>
void emit_prompt(const Tokenizer& tokenizer, const Row& row, const Emit& emit) {
  if (tokenizer.bos_id() >= 0) emit({tokenizer.bos_id()}, Learn::kNo);
  if (row.turns.empty()) {
    emit(tokenizer.encode(row.corpus), Learn::kYes);
    return;
  }
  for (size_t i = 0; i < row.turns.size(); ++i) {
    std::string prompt;
    if (i == 0 && !row.system.empty()) prompt = "### System:\n" + row.system + "\n";
    prompt += "### Human:\n" + row.turns[i].prompt + "\n### Assistant:\n";
    emit(tokenizer.encode(prompt), Learn::kNo);
    if (i + 1 == row.turns.size()) break;
    emit(tokenizer.encode(row.turns[i].answer), Learn::kYes);
    emit({tokenizer.eos_id()}, Learn::kYes);
  }
}

void require_eos(const Tokenizer& tokenizer) {
  if (tokenizer.eos_id() >= 0) return;
  throw DataError(
      "the tokenizer has no end-of-text token, which instruction tuning needs: nothing would end an answer");
}

}  // namespace

Sample encode_row(const Tokenizer& tokenizer, const Row& row, int64_t seq_len) {
  PESC_CHECK(seq_len > 0);
  require_eos(tokenizer);
  Sample sample;
  std::vector<bool> learned;  // [T]
  const auto emit = [&](const std::vector<int32_t>& tokens, Learn learn) {
    sample.tokens.insert(sample.tokens.end(), tokens.begin(), tokens.end());
    learned.resize(sample.tokens.size(), learn == Learn::kYes);
  };
  emit_prompt(tokenizer, row, emit);
  if (!row.turns.empty()) emit(tokenizer.encode(row.turns.back().answer), Learn::kYes);
  emit({tokenizer.eos_id()}, Learn::kYes);

  sample.truncated = std::ssize(sample.tokens) > seq_len;
  if (sample.truncated) sample.tokens.resize(static_cast<size_t>(seq_len));
  sample.labels.assign(sample.tokens.size(), kUnsupervised);
  for (size_t t = 0; t + 1 < sample.tokens.size(); ++t) {
    if (!learned[t + 1]) continue;
    sample.labels[t] = sample.tokens[t + 1];
    ++sample.supervised;
  }
  return sample;
}

std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const Row& row) {
  if (row.turns.size() > 1) require_eos(tokenizer);
  std::vector<int32_t> prompt;
  emit_prompt(tokenizer, row, [&](const std::vector<int32_t>& tokens, Learn) {
    prompt.insert(prompt.end(), tokens.begin(), tokens.end());
  });
  return prompt;
}

}  // namespace pesc
