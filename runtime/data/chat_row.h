// Rows as conversations, in all forms of runtime/chat/messages.h, for a chat template and for the published
// prompt. Plain text ("corpus") is the same for both.
#pragma once

#include <string>
#include <string_view>

#include "runtime/data/rows.h"

namespace pesc {

// What is made of a row's messages.
enum class RowUse {
  kPublished,  // turns of the published prompt: system, then user and assistant in turn, texts alone
  kTemplate,   // Row::chat; tools, other roles and further fields of a message reach the template
};

// Parses one JSON object, as parse_row does and with the same promises. For kPublished the forms of parse_row
// come first, and the others are read where it is none of these. Throws DataError or EmptyAnswer only.
[[nodiscard]] Row parse_any_row(std::string_view json, const std::string& where, Answers answers, RowUse use,
                                RowFields* fields = nullptr);

// A row for a template from the texts of one of the published prompt.
[[nodiscard]] Conversation conversation_of_turns(const Row& row);

}  // namespace pesc
