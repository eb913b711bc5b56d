// Rows in the forms of other programs: "conversations" with "from" and "value", "prompt" and "completion",
// "query" and "response", "instruction" and "response". runtime/chat/messages.h makes a list of messages of
// them.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/data/row_events.h"
#include "runtime/data/rows.h"

namespace pesc {

enum class OtherForm { kConversations, kPromptCompletion, kQueryResponse, kInstructionResponse };

// The forms that the row has. Where it is in a form of our own, fields such as "prompt" are no form.
[[nodiscard]] std::vector<OtherForm> other_forms(const RowEvents& events, Answers answers);

// REQUIRES: `text` is the row that `events` has read without a problem. Throws DataError or EmptyAnswer.
[[nodiscard]] Row row_in_other_form(OtherForm form, std::string_view text, const RowEvents& events,
                                    const std::string& where, Answers answers, const RowColumns& columns,
                                    RowFields* fields);

// How errors call message i, and what it says.
struct MessagePlaces {
  std::function<std::string(size_t)> message, content;
};

// Fills row.system and row.turns from messages of system, user and assistant.
void take_messages(std::vector<RowItem>& items, const MessagePlaces& places, const std::string& where,
                   Answers answers, Row& row);

// The text, which must not be blank. Throws EmptyAnswer naming the place.
[[nodiscard]] std::string require_answer(std::string text, const std::string& where,
                                         const std::string& place);

}  // namespace pesc
