// One row of training or evaluation data, in one of these formats:
//
//   published   {"instruction": "system text or empty", "conversation": [{"input": "..", "output": ".."},
//                ...], "dataset": "tag"}
//               Every turn is learned.
//   plain text  {"corpus": "text", "dataset": "tag"}
//               Continued as it is, without a template.
//   Alpaca      {"instruction": "..", "input": "..", "output": ".."}
//               The human turn is `instruction`, and `input`, unless empty, after a newline.
//   messages    {"messages": [{"role": "system" | "user" | "assistant", "content": ".."}, ...]}
//               One optional system message, then user and assistant in turn, assistant last.
//   others      "conversations" with "from" and "value"; "prompt" and "completion"; "query" and "response";
//               "instruction" and "response" (runtime/data/row_forms.h).
//
// "dataset" is an optional tag in all of them. "system" gives the system text of an Alpaca or published row,
// or of messages without a system message. "history" of an Alpaca row is a list of earlier turns,
// [["question", "answer"], ...], which are learned too. An element of `conversation` or `messages` may have
// "weight": 0 or "train": false: its answer is part of the text without loss. A null field counts as absent
// at every depth; a field that is read may appear only once. Unsupported fields that would change what is
// seen or learned are refused by name (runtime/data/row_fields.h); all others are ignored and counted. Human
// texts may be empty. An empty answer or plain text throws EmptyAnswer.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ops/core/check.h"
#include "runtime/data/row_columns.h"
#include "runtime/data/row_fields.h"

namespace pesc {

struct Conversation;  // runtime/chat/messages.h

struct Turn {
  std::string prompt;
  std::string answer;
  bool learned = true;  // false: part of the text, without loss
};

// Either `turns` or `corpus` is filled, never both. All texts are well-formed UTF-8 without NUL. A row for a
// chat template (runtime/data/chat_row.h) has `chat`, which is what the model sees; its `system` and `turns`
// are the texts of that, for messages.
struct Row {
  std::string tag;     // empty: the row names none
  std::string system;  // empty: the template's system part is left out
  std::vector<Turn> turns;
  std::string corpus;
  std::shared_ptr<const Conversation> chat{};
  std::string where{};  // "file:line"; empty where no file was read
};

// Which answers a row must have: all of them for training and comparison; for generation the last answer may
// be empty or missing.
enum class Answers { kAll, kAllButLast };

// A well-formed row whose answer, or plain text, is empty, as published data contains. It does not end a run:
// the row is skipped and reported, like a row with nothing left to learn after truncation.
struct EmptyAnswer : DataError {
  using DataError::DataError;
};

// Parses one JSON object. `where` ("file:line") starts every message. Memory is bounded by a small multiple
// of the text: unused values are not kept, and nesting beyond 64 levels is refused. The row's other fields
// are added to `fields`. `columns` names fields anew; a row that lacks one of these is refused. Throws
// DataError or EmptyAnswer only.
[[nodiscard]] Row parse_row(std::string_view json, const std::string& where, Answers answers = Answers::kAll,
                            RowFields* fields = nullptr, const RowColumns& columns = {});

}  // namespace pesc
