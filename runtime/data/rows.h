// One row of instruction data, from any of the formats that people have:
//
//   published   {"instruction": "system text or empty", "conversation": [{"input": "..", "output": ".."},
//   ...],
//                "dataset": "tag"}                     every turn is trained
//   plain text  {"corpus": "text", "dataset": "tag"}   continued as it is, no template
//   Alpaca      {"instruction": "..", "input": "..", "output": ".."}   `input`, when not empty, follows the
//   instruction
//                                                      after a newline; both are the human turn
//   messages    {"messages": [{"role": "system" | "user" | "assistant", "content": ".."}, ...]}
//                                                      one optional system message, then user and assistant
//                                                      by turns, assistant last
//
// "dataset" is an optional tag in all of them. "system" gives the system text of an Alpaca or published row,
// or of messages without a system message. "history" of an Alpaca row is a list of earlier turns,
// [["question", "answer"], ...], which are learned too. An element of `conversation` or `messages` may say
// "weight": 0 or "train": false: its answer is shown and not learned. A null field counts as absent at every
// depth, a field that matters appears once. Fields that would change what is seen or learned and are not
// supported are refused by name (runtime/data/row_fields.h); all others are ignored and counted. Human texts
// may be empty (text with no question); a row with an answer or plain text that is empty has nothing to
// teach.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ops/core/check.h"
#include "runtime/data/row_fields.h"

namespace pesc {

struct Turn {
  std::string prompt;
  std::string answer;
  bool learned = true;  // false: part of the text, without loss
};

// Either `turns` or `corpus` is filled, never both. All texts are well-formed UTF-8 without NUL.
struct Row {
  std::string tag;     // empty: the row names none
  std::string system;  // empty: the template's system part is left out
  std::vector<Turn> turns;
  std::string corpus;
};

// What is trained on or compared with needs every answer; what is only to be answered needs none after its
// last question: it may be empty or left out.
enum class Answers { kAll, kAllButLast };

// A row in good order whose answer, or plain text, is empty: published data has such. No mistake that should
// end a run; the row is left out and reported, as one that has nothing left after truncation.
struct EmptyAnswer : DataError {
  using DataError::DataError;
};

// Parses one JSON object. `where` ("file:line") opens every message. Memory is bounded by a small multiple of
// the text, whatever it holds: what is not needed is not kept, and nesting is refused beyond 64 levels.
// Adds the row's further fields to `fields`. Throws DataError, EmptyAnswer among them, and nothing
// else.
[[nodiscard]] Row parse_row(std::string_view json, const std::string& where, Answers answers = Answers::kAll,
                            RowFields* fields = nullptr);

}  // namespace pesc
