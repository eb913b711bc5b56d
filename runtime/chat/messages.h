// The forms in which people keep conversations, brought into one: a list of messages {"role", "content",
// ...}. Pure functions over JSON.
//
//   messages                [{"role": .., "content": ..}, ..]
//   conversations           [{"from": "human" | "gpt" | "system" | "tool" .., "value": ..}, ..]; also with
//                           role and content
//   prompt, completion      two strings, or two lists of messages
//   query, response         two strings
//   instruction, response   and instruction, output; with an optional input, which follows after a newline,
//                           and an optional history, [["question", "answer"], ..]
//   conversation            [{"input": .., "output": ..}, ..] with "instruction" as the system text (the
//                           published form)
//
// A "system" or "system_prompt" string of the row becomes a first message where there is none; "tools" (a
// list, or JSON text of one) reaches the template. A null field counts as absent at every depth of a message.
// An assistant's message with "train": false, "training": false, "loss": false or "weight": 0 is shown and
// not learned; none of these fields reaches the template.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace pesc {

struct Conversation {
  nlohmann::ordered_json messages;  // a list of objects, each with "role"
  nlohmann::ordered_json tools;     // a list, or null
  std::vector<bool> learned;        // of each message; false for all that are not the assistant's
};

// data.columns: from the name that the file uses to ours ("question" -> "prompt").
using ColumnNames = std::map<std::string, std::string>;

// Throws DataError, beginning with `where`.
[[nodiscard]] Conversation conversation_of(const nlohmann::ordered_json& row, const std::string& where,
                                           const ColumnNames& columns = {});

}  // namespace pesc
