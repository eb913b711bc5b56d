// The chat template of a model as a run uses it: found, compiled and checked against the tokenizer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "runtime/chat/chat_template.h"
#include "runtime/chat/messages.h"
#include "runtime/hf/mapped_file.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

struct ModelTemplates {
  ChatTemplate usual;
  std::optional<ChatTemplate> with_tools;  // of folders that have one of its own for rows with tools
  int32_t end_of_turn = -1;                // the token that ends an answer
  [[nodiscard]] bool ask_for_date() const {
    return usual.asks_for_date() || (with_tools && with_tools->asks_for_date());
  }
  [[nodiscard]] const ChatTemplate& of(const Conversation& conversation) const {
    return with_tools && conversation.tools.is_array() ? *with_tools : usual;
  }
};

// data.chat_template and data.template_date.
struct TemplateSetting {
  std::string name = "auto";
  std::string date;
};

// Nothing: the prompt is the published one, which is tokenised piece by piece (runtime/data/template.h).
// `folder` is the tokenizer's. Throws DataError (TemplateError among them), with the template's name, when an
// answer or its end is not found in what the template writes, when the end of a turn is no token of this
// tokenizer, or when bos_token or another such name that the template writes is more than one; UsageError for a
// setting that is no template.
[[nodiscard]] std::optional<ModelTemplates> open_templates(const TemplateSetting& setting,
                                                           const std::string& folder,
                                                           const Tokenizer& tokenizer, Links links);

// The control tokens of a tokenizer, as a template needs them.
[[nodiscard]] TemplateTokens template_tokens(const Tokenizer& tokenizer);

}  // namespace pesc
