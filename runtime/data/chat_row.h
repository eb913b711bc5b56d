// Rows as conversations for a chat template, in all forms of runtime/chat/messages.h. Tools, other roles and
// further fields of a message are kept.
#pragma once

#include <string>
#include <string_view>

#include "runtime/data/rows.h"

namespace pesc {

// What is made of a row's messages.
enum class RowUse {
  kPublished,  // turns: system, then user and assistant in turn, texts alone
  kTemplate,   // Row::chat
};

// parse_row() for the published prompt and for plain text; for a template one JSON object with the same
// promises. Throws DataError or EmptyAnswer only.
[[nodiscard]] Row parse_any_row(std::string_view json, const std::string& where, Answers answers, RowUse use,
                                RowFields* fields = nullptr, const RowColumns& columns = {});

// A row for a template from the texts of one of the published prompt.
[[nodiscard]] Conversation conversation_of_turns(const Row& row);

}  // namespace pesc
