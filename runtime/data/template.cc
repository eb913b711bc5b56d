#include "runtime/data/template.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "ops/core/check.h"
#include "runtime/text/printable.h"
#include "runtime/text/utf8.h"

namespace pesc {
namespace {

enum class Learn { kNo, kYes };
enum class Part { kPrompt, kAnswer };

std::string question_text(const Row& row, size_t turn) {
  std::string question;
  if (turn == 0 && !row.system.empty()) question = "### System:\n" + row.system + "\n";
  return question + "### Human:\n" + row.turns[turn].prompt + "\n### Assistant:\n";
}

// Puts a row's tokens one piece after another, each tokenised by itself, until there are more than `limit`.
class Encoder {
 public:
  Encoder(const Tokenizer& tokenizer, int64_t limit, RowLosses* losses)
      : tokenizer_(tokenizer), limit_(limit), losses_(losses) {}

  std::vector<int32_t> tokens;
  std::vector<bool> learned;  // [T]

  [[nodiscard]] bool full() const { return std::ssize(tokens) > limit_; }

  void special(int32_t id, Learn learn) {
    tokens.push_back(id);
    learned.push_back(learn == Learn::kYes);
  }

  void text(std::string_view text, Part part, Learn learn) {
    if (full()) return;
    const EncodedStart start = tokenizer_.encode_start(text, limit_ - std::ssize(tokens));
    tokens.insert(tokens.end(), start.ids.begin(), start.ids.end());
    learned.resize(tokens.size(), learn == Learn::kYes);
    if (losses_ != nullptr) find_losses(text, start, part);
  }

  // All up to the answer of the last turn; all of plain text.
  void prompt(const Row& row) {
    if (tokenizer_.bos_id() >= 0) special(tokenizer_.bos_id(), Learn::kNo);
    if (row.turns.empty()) text(row.corpus, Part::kAnswer, Learn::kYes);
    for (size_t i = 0; i < row.turns.size() && !full(); ++i) {
      const Turn& turn = row.turns[i];
      text(question_text(row, i), Part::kPrompt, Learn::kNo);
      if (i + 1 < row.turns.size()) answer(turn);
    }
  }

  void answer(const Turn& turn) {
    const Learn learn = turn.learned ? Learn::kYes : Learn::kNo;
    text(turn.answer, Part::kAnswer, learn);
    special(tokenizer_.eos_id(), learn);
  }

 private:
  void find_losses(std::string_view text, const EncodedStart& start, Part part) {
    const auto unknown =
        std::ranges::count_if(start.ids, [&](int32_t id) { return tokenizer_.is_unknown(id); });
    losses_->unknown += unknown;
    const bool unsayable = part == Part::kAnswer && start.ids.empty();
    losses_->unsayable |= unsayable;
    // The tokens of a text that was cut may stand for a part of it only.
    const std::string back = tokenizer_.decode(start.ids);
    const bool whole = start.bytes == text.size();
    const bool changed = whole ? back != text : !text.starts_with(back);
    losses_->changed |= changed;
    if ((unknown > 0 || unsayable || changed) && losses_->example.empty())
      losses_->example = difference(whole ? text : text.substr(0, back.size()), back);
  }

  const Tokenizer& tokenizer_;
  int64_t limit_;
  RowLosses* losses_;
};

void require_eos(const Tokenizer& tokenizer) {
  if (tokenizer.eos_id() >= 0) return;
  throw DataError(
      "the tokenizer has no end-of-text token, which instruction tuning needs: nothing would end an answer");
}

}  // namespace

Sample encode_row(const Tokenizer& tokenizer, const Row& row, int64_t max_seq_length, RowLosses* losses) {
  PESC_CHECK(max_seq_length > 0);
  require_eos(tokenizer);
  Encoder encoder(tokenizer, max_seq_length, losses);
  encoder.prompt(row);
  if (row.turns.empty()) {
    encoder.special(tokenizer.eos_id(), Learn::kYes);
  } else {
    encoder.answer(row.turns.back());
  }
  Sample sample;
  sample.tokens = std::move(encoder.tokens);
  sample.truncated = std::ssize(sample.tokens) > max_seq_length;
  if (sample.truncated) sample.tokens.resize(static_cast<size_t>(max_seq_length));
  sample.labels.assign(sample.tokens.size(), kUnsupervised);
  for (size_t t = 0; t + 1 < sample.tokens.size(); ++t) {
    if (!encoder.learned[t + 1]) continue;
    sample.labels[t] = sample.tokens[t + 1];
    ++sample.supervised;
  }
  return sample;
}

std::string difference(std::string_view before, std::string_view after) {
  const auto at = static_cast<size_t>(std::ranges::mismatch(before, after).in1 - before.begin());
  const auto around = [at](std::string_view text) {
    constexpr size_t kEachSide = 16;
    size_t begin = std::min(at, text.size()) - std::min(at, std::min(kEachSide, text.size()));
    while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0U) == 0x80U) --begin;
    std::string_view part = text.substr(begin, at - begin + kEachSide);
    const bool cut = part.size() < text.size() - begin;
    part = part.substr(0, cut ? valid_utf8_prefix(part) : part.size());
    return str_cat("'", begin > 0 ? "..." : "", printable(part), cut ? "...'" : "'");
  };
  return str_cat(around(before), " becomes ", around(after));
}

std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const Row& row, int64_t limit) {
  if (row.turns.size() > 1) require_eos(tokenizer);
  Encoder encoder(tokenizer, limit, nullptr);
  encoder.prompt(row);
  return std::move(encoder.tokens);
}

std::string published_text(const Tokenizer& tokenizer, const Row& row) {
  const std::string end = tokenizer.eos_id() < 0 ? "" : tokenizer.piece(tokenizer.eos_id());
  std::string text = tokenizer.bos_id() < 0 ? "" : tokenizer.piece(tokenizer.bos_id());
  if (row.turns.empty()) text += row.corpus + end;
  for (size_t i = 0; i < row.turns.size(); ++i) text += question_text(row, i) + row.turns[i].answer + end;
  return text;
}

}  // namespace pesc
