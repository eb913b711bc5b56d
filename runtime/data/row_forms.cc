#include "runtime/data/row_forms.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "ops/core/check.h"
#include "runtime/chat/messages.h"
#include "runtime/text/json_mistake.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using Json = nlohmann::ordered_json;

// A tree of the row is made, which takes many times the memory of an empty list's text.
constexpr int64_t kMostContainers = int64_t{1} << 16;

struct Pair {
  OtherForm form;
  const char* question;
  const char* answer;
};
constexpr Pair kPairs[] = {{OtherForm::kPromptCompletion, "prompt", "completion"},
                           {OtherForm::kQueryResponse, "query", "response"},
                           {OtherForm::kInstructionResponse, "instruction", "response"}};

bool says(const std::optional<std::string>& text) {
  return text && !text->empty();
}

// What stands beside a form and would neither be seen nor learned.
void refuse_others(OtherForm form, const RowEvents& events, const std::string& where) {
  const auto no_place = [&](const char* field, bool there) {
    if (there) throw DataError(str_cat(where, ": \"", field, "\" has no place beside this form of a row"));
  };
  const bool instruction = form == OtherForm::kInstructionResponse;
  no_place("instruction", !instruction && says(events.instruction));
  no_place("input", !instruction && says(events.input));
  no_place("history", events.history && !events.history->empty());
}

// Fields of a message beyond what is read of it: refused, or added to `unused`.
void take_other_fields(const Json& message, const std::string& place, const std::string& where,
                       std::set<std::string>& unused) {
  for (const auto& [name, value] : message.items()) {
    if (name == "role" || name == "content") continue;
    const std::string shown = printable(std::string_view(name).substr(0, 64));
    const std::string_view why = refused_element_field(name);
    if (!why.empty() && !says_nothing(name, value))
      throw DataError(str_cat(where, ": ", place, ".", shown, " ", why));
    if (why.empty() && !value.is_null() && unused.size() < 16) unused.insert(shown);
  }
}

std::string text_of(const Json& message, const std::string& place, const std::string& where) {
  const auto content = message.find("content");
  if (content == message.end()) throw DataError(str_cat(where, ": ", place, " has no text"));
  if (!content->is_string()) {
    throw DataError(str_cat(where, ": ", place,
                            " is no string; only text is supported: write the text of its parts as one"));
  }
  std::string text = content->get<std::string>();
  if (text.find('\0') != std::string::npos)
    throw DataError(str_cat(where, ": ", place, " holds a NUL character"));
  return text;
}

}  // namespace

std::string require_answer(std::string text, const std::string& where, const std::string& place) {
  if (text.find_first_not_of(" \t\r\n") == std::string::npos)
    throw EmptyAnswer(str_cat(where, ": ", place, " is empty; there is nothing to learn from it"));
  return text;
}

std::vector<OtherForm> other_forms(const RowEvents& events, Answers answers) {
  std::vector<OtherForm> found;
  if (events.of_other_forms.contains("conversations")) found.push_back(OtherForm::kConversations);
  if (!found.empty() || events.output || events.conversation || events.corpus || events.messages)
    return found;
  for (const Pair& pair : kPairs) {
    const bool instruction = pair.form == OtherForm::kInstructionResponse;
    const bool asks =
        instruction ? events.instruction.has_value() : events.of_other_forms.contains(pair.question);
    const bool answers_it = events.of_other_forms.contains(pair.answer);
    const bool alone = answers == Answers::kAllButLast && !events.instruction;
    if (asks && (answers_it || alone)) found.push_back(pair.form);
  }
  return found;
}

Row row_in_other_form(OtherForm form, std::string_view text, const RowEvents& events,
                      const std::string& where, Answers answers, const RowColumns& columns,
                      RowFields* fields) {
  refuse_others(form, events, where);
  if (events.containers > kMostContainers) {
    throw DataError(str_cat(where, ": has ", events.containers,
                            " lists and objects; a row in this form has at most ", kMostContainers));
  }
  Json json = Json::parse(text);
  const Pair* pair = nullptr;
  for (const Pair& p : kPairs)
    if (p.form == form) pair = &p;
  if (pair != nullptr && answers == Answers::kAllButLast && !events.of_other_forms.contains(pair->answer))
    json[columns.theirs(pair->answer)] = "";
  const Conversation conversation = conversation_of(json, where, columns.names);
  const size_t added = says(events.system) ? 1 : 0;  // it is the first message
  const bool texts = pair != nullptr && conversation.messages.size() == 2 + added;
  MessagePlaces places;
  places.message = [&](size_t i) {
    if (i < added) return std::string("\"system\"");
    if (texts) return str_cat("\"", columns.theirs(i < 1 + added ? pair->question : pair->answer), "\"");
    return pair == nullptr ? str_cat("conversations[", i - added, "]") : str_cat("message ", i - added);
  };
  places.content = places.message;
  std::vector<RowItem> items;
  std::set<std::string> unused;
  for (size_t i = 0; i < conversation.messages.size(); ++i) {
    const Json& message = conversation.messages[i];
    const std::string place = places.message(i);
    take_other_fields(message, place, where, unused);
    RowItem& item = items.emplace_back();
    item.texts = {message.at("role").get<std::string>(), text_of(message, place, where)};
    if (item.texts[0] == "assistant") item.learned = conversation.learned[i];
  }
  for (const std::string& name : unused) {
    if (fields != nullptr)
      fields->unused.add(str_cat(pair == nullptr ? "conversations" : "messages", "[].", name));
  }
  Row row;
  row.tag = events.dataset.value_or("");
  take_messages(items, places, where, answers, row);
  return row;
}

void take_messages(std::vector<RowItem>& items, const MessagePlaces& places, const std::string& where,
                   Answers answers, Row& row) {
  bool answered = true;  // the next message is the user's
  for (size_t i = 0; i < items.size(); ++i) {
    const std::string role = std::move(items[i].texts[0]).value_or("");
    std::string content = std::move(items[i].texts[1]).value_or("");
    const std::string place = places.message(i);
    if (role != "assistant" && items[i].learned.value_or(false)) {
      throw DataError(
          str_cat(where, ": ", place, " is to be learned (\"weight\" or \"train\"), but only answers are"));
    }
    if (role == "system") {
      if (i != 0)
        throw DataError(str_cat(where, ": ", place, " is a system message; only the first may be one"));
      if (!row.system.empty())
        throw DataError(str_cat(where, ": \"system\" and ", place, " both give the system text"));
      row.system = std::move(content);
    } else if (role == "user") {
      if (!answered)
        throw DataError(str_cat(where, ": ", place, " is a second user message with no answer between"));
      row.turns.push_back({std::move(content), {}});
      answered = false;
    } else if (role == "assistant") {
      if (answered)
        throw DataError(str_cat(where, ": ", place, " is an assistant message that follows no user's"));
      if (i + 1 < items.size() || answers == Answers::kAll)
        content = require_answer(std::move(content), where, places.content(i));
      row.turns.back().answer = std::move(content);
      row.turns.back().learned = items[i].learned.value_or(true);
      answered = true;
    } else {
      throw DataError(str_cat(where, ": ", place, ".role is ", in_quotes(role, kCited),
                              "; roles are system, user and assistant"));
    }
  }
  if (row.turns.empty()) throw DataError(str_cat(where, ": the row has no user and assistant message"));
  if (!answered && answers == Answers::kAll)
    throw DataError(str_cat(where, ": the last message is the user's; an assistant's must follow"));
}

}  // namespace pesc
