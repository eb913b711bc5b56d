// Rows are read event by event (SAX): only the known texts are kept, so a row of sixteen million brackets
// costs a counter, not a tree of sixteen million nodes.
#include "runtime/data/rows.h"

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "ops/core/check.h"
#include "runtime/data/utf8.h"

namespace pesc {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 64;

// Text of a row, cut and cleaned for a message.
std::string shown(std::string_view text) {
  constexpr size_t kMost = 40;
  std::string out = "'";
  for (const char c : text.substr(0, kMost)) out += c >= 0x20 && c < 0x7F ? c : '?';
  return out + (text.size() > kMost ? "...'" : "'");
}

enum Field {
  kInstruction,
  kInput,
  kOutput,
  kCorpus,
  kDataset,
  kTexts,
  kConversation = kTexts,
  kMessages,
  kFields
};
constexpr std::array<std::string_view, kFields> kFieldNames = {
    "instruction", "input", "output", "corpus", "dataset", "conversation", "messages"};

// An element of `conversation` (input, output) or of `messages` (role, content).
using Item = std::array<std::string, 2>;
struct ListFormat {
  std::array<std::string_view, 2> keys;
};
constexpr ListFormat kConversationFormat{{"input", "output"}};
constexpr ListFormat kMessagesFormat{{"role", "content"}};

// What the row holds at its known places. `depth_` counts the containers that are open: at 1 stand the row's
// own values, at 2 the elements of its lists, at 3 the elements' values.
class RowEvents {
 public:
  explicit RowEvents(Answers answers) : answers_(answers) {}

  std::array<std::optional<std::string>, kTexts> texts;
  std::optional<std::vector<Item>> conversation, messages;
  std::string problem;  // empty when all is well

  bool null() { return scalar("null"); }
  bool boolean(bool /*value*/) { return scalar("a boolean"); }
  bool number_integer(json::number_integer_t /*value*/) { return scalar("a number"); }
  bool number_unsigned(json::number_unsigned_t /*value*/) { return scalar("a number"); }
  bool number_float(json::number_float_t /*value*/, const std::string& /*text*/) {
    return scalar("a number");
  }
  bool binary(json::binary_t& /*value*/) { return scalar("binary data"); }

  bool string(std::string& value) {
    if (depth_ == 1 && field_ < kTexts) {
      if (value.find('\0') != std::string::npos) return fail(place(), " holds a NUL character");
      texts[static_cast<size_t>(field_)] = std::move(value);
      return true;
    }
    if (in_item_ && depth_ == 3 && key_ >= 0) {
      if (value.find('\0') != std::string::npos) return fail(place(), " holds a NUL character");
      list()->back()[static_cast<size_t>(key_)] = std::move(value);
      return true;
    }
    return scalar("a string");
  }

  bool start_object(size_t /*elements*/) {
    if (in_list_ && depth_ == 2) {
      list()->emplace_back();
      item_seen_ = {false, false};
      in_item_ = true;
    } else if (!container("an object", depth_ == 0)) {
      return false;
    }
    return open();
  }

  bool start_array(size_t /*elements*/) {
    if (depth_ == 1 && (field_ == kConversation || field_ == kMessages)) {
      list().emplace();
      in_list_ = true;
    } else if (!container("an array", false)) {
      return false;
    }
    return open();
  }

  bool end_object() {
    --depth_;
    if (!in_item_ || depth_ != 2) return true;
    in_item_ = false;
    // Here, and not once all are read: a row of nothing but empty elements must not fill the memory.
    // An output left out of a turn that is not the last is refused later, as empty.
    const bool may_lack_output = answers_ == Answers::kAllButLast && field_ == kConversation;
    for (size_t k = 0; k < (may_lack_output ? 1 : 2); ++k) {
      if (!item_seen_[k]) return fail(element(), " has no \"", format().keys[k], "\"");
    }
    return true;
  }

  bool end_array() {
    --depth_;
    if (depth_ == 1) in_list_ = false;
    return true;
  }

  bool key(std::string& name) {
    if (depth_ == 1) {
      field_ = kFields;
      for (int f = 0; f < kFields; ++f) {
        if (kFieldNames[static_cast<size_t>(f)] == name) field_ = static_cast<Field>(f);
      }
      if (field_ == kFields) return true;
      bool& seen = seen_[static_cast<size_t>(field_)];
      if (seen) return fail(place(), " appears twice");
      seen = true;
    } else if (in_item_ && depth_ == 3) {
      key_ = -1;
      for (int k = 0; k < 2; ++k) {
        if (format().keys[static_cast<size_t>(k)] == name) key_ = k;
      }
      if (key_ < 0) return true;
      bool& seen = item_seen_[static_cast<size_t>(key_)];
      if (seen) return fail(place(), " appears twice");
      seen = true;
    }
    return true;
  }

  bool parse_error(size_t position, const std::string& /*last_token*/, const json::exception& /*error*/) {
    return fail("not valid JSON at byte ", position, " of the row");
  }

 private:
  template <class... Parts>
  bool fail(const Parts&... parts) {
    problem = str_cat(parts...);
    return false;
  }

  std::optional<std::vector<Item>>& list() { return field_ == kConversation ? conversation : messages; }
  const ListFormat& format() const { return field_ == kConversation ? kConversationFormat : kMessagesFormat; }

  std::string element() {
    return str_cat(kFieldNames[static_cast<size_t>(field_)], "[", list()->size() - 1, "]");
  }
  std::string place() {
    if (depth_ == 1) return str_cat("\"", kFieldNames[static_cast<size_t>(field_)], "\"");
    return str_cat(element(), ".", format().keys[static_cast<size_t>(key_)]);
  }

  bool open() {
    ++depth_;
    return depth_ <= kMaxDepth || fail("nested deeper than ", kMaxDepth, " levels");
  }

  // A container where none is expected, unless it is the row itself or belongs to an unknown field.
  bool container(std::string_view what, bool row_itself) { return row_itself || scalar(what); }

  // A value that is not the one expected at its place; at an unknown place anything goes.
  bool scalar(std::string_view what) {
    if (depth_ == 0) return fail("the row is ", what, ", not a JSON object");
    if (depth_ == 1 && field_ != kFields) {
      if (what == "null") return true;
      return fail(place(), " is ", what, ", not ", field_ < kTexts ? "a string" : "a list");
    }
    if (in_list_ && depth_ == 2) {
      return fail(kFieldNames[static_cast<size_t>(field_)], "[", list()->size(), "] is ", what,
                  ", not an object");
    }
    if (in_item_ && depth_ == 3 && key_ >= 0) return fail(place(), " is ", what, ", not a string");
    return true;
  }

  Answers answers_;
  int depth_ = 0;
  Field field_ = kFields;  // at depth 1; kFields: an unknown one
  int key_ = -1;           // of an element; -1: an unknown one
  bool in_list_ = false;
  bool in_item_ = false;
  std::array<bool, kFields> seen_{};
  std::array<bool, 2> item_seen_{};
};

bool blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

std::string require_answer(std::string text, const std::string& where, const std::string& place) {
  if (blank(text))
    throw EmptyAnswer(str_cat(where, ": ", place, " is empty; there is nothing to learn from it"));
  return text;
}

void take_conversation(std::vector<Item>& items, const std::string& where, Answers answers, Row& row) {
  if (items.empty()) throw DataError(str_cat(where, ": \"conversation\" has no turn"));
  row.turns.reserve(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    auto& [input, output] = items[i];
    if (i + 1 < items.size() || answers == Answers::kAll)
      output = require_answer(std::move(output), where, str_cat("conversation[", i, "].output"));
    row.turns.push_back({std::move(input), std::move(output)});
  }
}

void take_messages(std::vector<Item>& items, const std::string& where, Answers answers, Row& row) {
  bool answered = true;  // the next message is the user's
  for (size_t i = 0; i < items.size(); ++i) {
    auto& [role, content] = items[i];
    const std::string place = str_cat("messages[", i, "]");
    if (role == "system") {
      if (i != 0)
        throw DataError(str_cat(where, ": ", place, " is a system message; only the first may be one"));
      row.system = std::move(content);
    } else if (role == "user") {
      if (!answered)
        throw DataError(str_cat(where, ": ", place, ": two user messages with no answer between"));
      row.turns.push_back({std::move(content), {}});
      answered = false;
    } else if (role == "assistant") {
      if (answered)
        throw DataError(str_cat(where, ": ", place, ": an assistant message that follows no user's"));
      if (i + 1 < items.size() || answers == Answers::kAll)
        content = require_answer(std::move(content), where, place + ".content");
      row.turns.back().answer = std::move(content);
      answered = true;
    } else {
      throw DataError(
          str_cat(where, ": ", place, ".role is ", shown(role), "; roles are system, user and assistant"));
    }
  }
  if (row.turns.empty()) throw DataError(str_cat(where, ": \"messages\" has no user and assistant message"));
  if (!answered && answers == Answers::kAll)
    throw DataError(str_cat(where, ": the last message is the user's; an assistant's must follow"));
}

void take_alpaca(RowEvents& events, const std::string& where, Answers answers, Row& row) {
  auto& [instruction, input, output, corpus, dataset] = events.texts;
  if (!instruction) throw DataError(str_cat(where, ": has \"output\" but no \"instruction\""));
  if (answers == Answers::kAllButLast) {
    if (!output) output.emplace();
  } else if (output) {
    output = require_answer(std::move(*output), where, "\"output\"");
  } else {
    throw DataError(str_cat(where, ": has \"instruction\" but neither \"output\" nor \"conversation\""));
  }
  std::string prompt = std::move(*instruction);
  if (input && !input->empty()) prompt += (prompt.empty() ? "" : "\n") + *input;
  row.turns.push_back({std::move(prompt), std::move(*output)});
}

}  // namespace

Row parse_row(std::string_view text, const std::string& where, Answers answers) {
  // The JSON reader would take a zero byte for the end of its input and accept anything behind it.
  if (const size_t at = text.find('\0'); at != std::string_view::npos) {
    throw DataError(str_cat(where, ": holds a NUL byte (byte ", at + 1, " of the row)"));
  }
  if (const size_t at = valid_utf8_prefix(text); at != text.size()) {
    throw DataError(str_cat(where, ": is not valid UTF-8 (byte ", at + 1, " of the row)"));
  }
  RowEvents events(answers);
  if (!json::sax_parse(text.begin(), text.end(), &events) || !events.problem.empty()) {
    throw DataError(str_cat(where, ": ", events.problem.empty() ? "not valid JSON" : events.problem));
  }
  auto& [instruction, input, output, corpus, dataset] = events.texts;
  const bool alpaca = output || (instruction && !events.conversation && !corpus && !events.messages);
  if (const int formats =
          int{alpaca} + events.conversation.has_value() + events.messages.has_value() + corpus.has_value();
      formats != 1) {
    throw DataError(str_cat(where, formats == 0 ? ": has none of " : ": has more than one of ",
                            "\"conversation\", \"messages\", \"corpus\", \"instruction\" with \"output\""));
  }
  if (instruction && !instruction->empty() && (corpus || events.messages)) {
    throw DataError(
        str_cat(where, ": \"instruction\" has no place beside \"", corpus ? "corpus" : "messages", "\""));
  }
  Row row;
  if (dataset) row.tag = std::move(*dataset);
  if (events.conversation) {
    if (instruction) row.system = std::move(*instruction);
    take_conversation(*events.conversation, where, answers, row);
  } else if (events.messages) {
    take_messages(*events.messages, where, answers, row);
  } else if (corpus) {
    row.corpus = require_answer(std::move(*corpus), where, "\"corpus\"");
  } else {
    take_alpaca(events, where, answers, row);
  }
  return row;
}

}  // namespace pesc
