// A model's chat template: from a conversation to the text that the model sees, and which parts of it are
// learned.
//
// A template is written in Jinja. Ours is a subset (runtime/chat/jinja/): every construct that published chat
// templates use, in the environment that transformers gives them (trim_blocks, lstrip_blocks, loop controls,
// sandboxed, tojson without ASCII escapes). What is not supported is refused by name, with template and line.
//
// Which part is learned. Stock templates do not say, so the renderer follows the text. A string of a message
// carries its ORIGIN through concatenation, trim, split, replace and slices into the rendered text; and the
// renderer notes which stretch of the text was written while the template went over which message. Of an
// assistant's message, everything is learned that the model itself would write: from behind the generation
// prompt (what the template writes with add_generation_prompt, such as "<|im_start|>assistant\n") to the
// control token that ends the turn, that token included and the newline behind it not. So the "</think>"
// between a message's reasoning and content is learned, and the braces around a tool call. Where a template
// has {% generation %} blocks, these say what is learned; a control token directly behind a block that holds
// none at its end is learned as well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "ops/core/check.h"
#include "runtime/chat/messages.h"
#include "runtime/chat/shown_fields.h"
#include "runtime/chat/template_source.h"
#include "runtime/chat/train_on.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

// What bounds one rendering. Beyond any of these the row is refused.
struct TemplateLimits {
  int64_t steps = 20'000'000;  // expressions and statements executed, and each 64 bytes that they read
  int depth = 400;             // of expressions and statements inside one another, macro calls included
  int64_t output_bytes = int64_t{64} << 20;  // of the rendered text
  int64_t memory_bytes = int64_t{1} << 30;   // of all strings, lists and mappings that are made
};

struct TemplateOptions {
  std::string date;  // "YYYY-MM-DD", what strftime_now sees; empty: a template that asks for it is refused
  nlohmann::ordered_json extra;  // further variables of the template, such as {"enable_thinking": false}
  TemplateLimits limits;
};

struct RenderedChat {
  std::string text;
  // What is learned: in order, disjoint, none of them empty.
  std::vector<TextRange> learned;
  // What comes from messages of the system, the user and tools, and from the tools' descriptions: in order,
  // disjoint. Special tokens are not matched in it (runtime/chat/chat_tokens.h).
  std::vector<TextRange> data;
  // What of the messages the text shows. Of a prompt, nothing is counted; an unshown question is named.
  ShownFields shown;
};

// The message names the template, the line, and what. `of_row`: it came up while a conversation was rendered,
// which another one may pass (the template raises an exception about it, it lacks a field, or it is beyond a
// limit); otherwise the template is at fault, whatever is rendered.
struct TemplateError : DataError {
  TemplateError(const std::string& what, bool of_row_) : DataError(what), of_row(of_row_) {}
  bool of_row;
};

class ChatTemplate {
 public:
  // Compiles. Throws TemplateError for a mistake and for a construct that is not supported.
  ChatTemplate(TemplateSource source, TemplateOptions options);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // Renders probe conversations. Throws TemplateError when no span of the assistant's text is found in them,
  // or when no control token ends it: under such a template nobody would learn to stop.
  void require_spans() const;

  // The whole conversation, as apply_chat_template without add_generation_prompt. Thread-safe. A message of
  // the assistant that is to be learned and whose text does not appear is no error (templates drop old
  // reasoning); one whose end of turn is not found is.
  [[nodiscard]] RenderedChat render(const Conversation& conversation, TrainOn train_on = TrainOn::kAll) const;

  // As far as the model's next turn: with add_generation_prompt. Nothing of it is learned.
  [[nodiscard]] RenderedChat render_prompt(const Conversation& conversation) const;

  // What the template writes between a user's message and the model's answer; empty where there is nothing,
  // as in Mistral's.
  [[nodiscard]] const std::string& generation_prompt() const;
  // The control token that ends a turn, as the probe saw it; a stop token of generation.
  [[nodiscard]] const std::string& end_of_turn() const;
  // The control tokens that the template writes around questions and answers: those whose rows of the
  // embedding a base model may never have trained.
  [[nodiscard]] const std::vector<std::string>& control_tokens() const;
  [[nodiscard]] const std::string& name() const;
  // Whether it names strftime_now, which alone sees TemplateOptions::date.
  [[nodiscard]] bool asks_for_date() const;
  // Of the text, the handed variables and the date: part of the token cache's key.
  [[nodiscard]] std::string identity() const;
  // The same without the date: what a checkpoint was trained with, and answers with on another day.
  [[nodiscard]] std::string undated_identity() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pesc
