// From rows to tokens, as a run does it: with the published prompt (runtime/data/template.h), or with a chat
// template (runtime/chat/). Training, evaluation and generation share one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/chat/chat_tokens.h"
#include "runtime/chat/model_templates.h"
#include "runtime/chat/train_on.h"
#include "runtime/data/chat_row.h"
#include "runtime/data/rows.h"
#include "runtime/data/template.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

// A row for people and programs: all of its text, its tokens, and which of them are learned.
struct RowText {
  std::string text;
  std::vector<int32_t> ids;
  std::vector<TokenRange> learned;  // in order, disjoint
};

class RowEncoder {
 public:
  // `templates`: none for the published prompt. The tokenizer must live as long as the encoder.
  explicit RowEncoder(const Tokenizer& tokenizer, std::optional<ModelTemplates> templates = std::nullopt,
                      TrainOn train_on = TrainOn::kAll)
      : tokenizer_(tokenizer), templates_(std::move(templates)), train_on_(train_on) {}

  // How rows must be parsed for this encoder.
  [[nodiscard]] RowUse row_use() const { return templates_ ? RowUse::kTemplate : RowUse::kPublished; }
  // "the template FILE", "the published prompt".
  [[nodiscard]] std::string name() const;
  // Why data.template_date has no effect; empty where some template asks for the date.
  [[nodiscard]] std::string why_no_date() const;
  // Null for the published prompt.
  [[nodiscard]] const ModelTemplates* templates() const { return templates_ ? &*templates_ : nullptr; }
  // The token that ends an answer of the template; -1 for the published prompt, which ends with end-of-text.
  [[nodiscard]] int32_t end_of_turn() const { return templates_ ? templates_->end_of_turn : -1; }

  // encode_row() of runtime/data/template.h, of either prompt. Throws TemplateError, which is of this row, for
  // a conversation that the template refuses.
  [[nodiscard]] Sample encode(const Row& row, int64_t max_seq_length, RowLosses* losses = nullptr) const;
  // encode_prompt(): as far as the model's answer. The last message, if it is the assistant's, is not read.
  [[nodiscard]] std::vector<int32_t> encode_prompt(const Row& row, int64_t limit = INT64_MAX) const;
  [[nodiscard]] RowText text_of(const Row& row) const;

  // What a model that says the last answer exactly says: the text behind the prompt, as the tokenizer gives it
  // back, without the token that ends it. An answer of more than `most_tokens` tokens is returned as it is.
  [[nodiscard]] std::string canonical_answer(const Row& row, int64_t most_tokens) const;

  // Identifies what this encoder makes of rows, but for the date of a template: kept in checkpoints.
  [[nodiscard]] std::string digest() const;
  // The same with the date and train_on, and of what is made of some rows: part of the key of tokenised rows
  // (runtime/data/token_cache_key.h).
  [[nodiscard]] std::string identity() const;

 private:
  [[nodiscard]] ChatTokens chat_tokens(const Conversation& conversation, TrainOn train_on, std::string* text,
                                       ShownFields* shown = nullptr) const;
  [[nodiscard]] bool by_template(const Row& row) const { return templates_ && row.corpus.empty(); }
  [[nodiscard]] Row with_last_alone(const Row& row) const;

  const Tokenizer& tokenizer_;
  std::optional<ModelTemplates> templates_;
  TrainOn train_on_;
};

}  // namespace pesc
