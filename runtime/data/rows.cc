#include "runtime/data/rows.h"

#include <optional>
#include <utility>

#include "ops/core/check.h"
#include "runtime/data/json_mistake.h"
#include "runtime/data/row_events.h"
#include "runtime/text/utf8.h"

namespace pesc {
namespace {

bool blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

std::string require_answer(std::string text, const std::string& where, const std::string& place) {
  if (blank(text))
    throw EmptyAnswer(str_cat(where, ": ", place, " is empty; there is nothing to learn from it"));
  return text;
}

// Every answer is to be learned unless it says otherwise; of a question nothing ever is.
void add_turns(std::vector<RowItem>& items, std::string_view list, const std::string& where, Answers answers,
               Row& row) {
  for (size_t i = 0; i < items.size(); ++i) {
    std::string answer = std::move(items[i].texts[1]).value_or("");
    if (i + 1 < items.size() || answers == Answers::kAll) {
      answer = require_answer(
          std::move(answer), where,
          list == "history" ? str_cat("history[", i, "][1]") : str_cat(list, "[", i, "].output"));
    }
    row.turns.push_back({std::move(*items[i].texts[0]), std::move(answer), items[i].learned.value_or(true)});
  }
}

void take_conversation(std::vector<RowItem>& items, const std::string& where, Answers answers, Row& row) {
  if (items.empty()) throw DataError(str_cat(where, ": \"conversation\" has no turn"));
  row.turns.reserve(items.size());
  add_turns(items, "conversation", where, answers, row);
}

void take_messages(std::vector<RowItem>& items, const std::string& where, Answers answers, Row& row) {
  bool answered = true;  // the next message is the user's
  for (size_t i = 0; i < items.size(); ++i) {
    const std::string role = std::move(items[i].texts[0]).value_or("");
    std::string content = std::move(items[i].texts[1]).value_or("");
    const std::string place = str_cat("messages[", i, "]");
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
        throw DataError(str_cat(where, ": ", place, ": two user messages with no answer between"));
      row.turns.push_back({std::move(content), {}});
      answered = false;
    } else if (role == "assistant") {
      if (answered)
        throw DataError(str_cat(where, ": ", place, ": an assistant message that follows no user's"));
      if (i + 1 < items.size() || answers == Answers::kAll)
        content = require_answer(std::move(content), where, place + ".content");
      row.turns.back().answer = std::move(content);
      row.turns.back().learned = items[i].learned.value_or(true);
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
  std::optional<std::string>& output = events.output;
  if (!events.instruction) throw DataError(str_cat(where, ": has \"output\" but no \"instruction\""));
  if (answers == Answers::kAllButLast) {
    if (!output) output.emplace();
  } else if (output) {
    output = require_answer(std::move(*output), where, "\"output\"");
  } else {
    throw DataError(str_cat(where, ": has \"instruction\" but neither \"output\" nor \"conversation\"",
                            "; its fields are ", events.fields));
  }
  if (events.history) add_turns(*events.history, "history", where, Answers::kAll, row);
  std::string prompt = std::move(*events.instruction);
  if (events.input && !events.input->empty()) prompt += (prompt.empty() ? "" : "\n") + *events.input;
  row.turns.push_back({std::move(prompt), std::move(*output)});
}

// How many of the four formats the row is in: one, unless it is refused.
// How to write a known form of another program here; empty for others.
std::string how_to_convert(const std::string& fields) {
  const auto has = [&](const char* name) {
    return fields.find(str_cat('"', name, '"')) != std::string::npos;
  };
  const auto pair = [](const char* question, const char* answer) {
    return str_cat("; write \"", question, "\" as \"instruction\" and \"", answer, "\" as \"output\"");
  };
  for (const char* answer : {"completion", "response", "answer", "targets", "target", "outputs", "answers"}) {
    for (const char* question : {"prompt", "question", "query", "inputs", "instruction", "problem"})
      if (has(question) && has(answer)) return pair(question, answer);
  }
  for (const char* list : {"prompt", "completion", "chat", "dialogue", "dialog", "turns"})
    if (has(list))
      return str_cat("; write the turns of \"", list, "\" as \"messages\" with \"role\" and \"content\"");
  if (has("text")) return "; write plain text to learn from as \"corpus\"";
  return "";
}

void check_format(const RowEvents& events, bool alpaca, const std::string& where) {
  const int formats =
      int{alpaca} + events.conversation.has_value() + events.messages.has_value() + events.corpus.has_value();
  const std::string conversion = formats == 0 ? how_to_convert(events.fields) : "";
  if (formats == 0 && !events.holds_rows.empty() && conversion.empty()) {
    throw DataError(
        str_cat(where, ": \"", events.holds_rows,
                "\" holds a list of objects; if these are the rows, take the list out of it: rows are "
                "lines of JSON, or the elements of one JSON array"));
  }
  if (formats != 1) {
    throw DataError(str_cat(where, formats == 0 ? ": has none of " : ": has more than one of ",
                            "\"conversation\", \"messages\", \"corpus\", \"instruction\" with \"output\"",
                            "; its fields are ", events.fields.empty() ? "none" : events.fields, conversion));
  }
  const char* format = events.corpus ? "corpus" : events.messages ? "messages" : "conversation";
  const auto no_place = [&](const char* field, bool there) {
    if (there) throw DataError(str_cat(where, ": \"", field, "\" has no place beside \"", format, "\""));
  };
  const auto says = [](const std::optional<std::string>& text) { return text && !text->empty(); };
  no_place("instruction", says(events.instruction) && (events.corpus || events.messages));
  no_place("input", says(events.input) && !alpaca);
  no_place("history", events.history && !events.history->empty() && !alpaca);
  no_place("system", says(events.system) && events.corpus);
  if (events.conversation && says(events.instruction) && says(events.system))
    throw DataError(
        str_cat(where, ": \"system\" and \"instruction\" both give the conversation's system text"));
}

}  // namespace

Row parse_row(std::string_view text, const std::string& where, Answers answers, RowFields* fields) {
  // The JSON reader would take a zero byte for the end of its input and accept anything behind it.
  if (const size_t at = text.find('\0'); at != std::string_view::npos) {
    throw DataError(str_cat(where, ": holds a NUL byte (byte ", at + 1, " of the row)"));
  }
  if (const size_t at = valid_utf8_prefix(text); at != text.size()) {
    throw DataError(str_cat(where, ": is not valid UTF-8 (byte ", at + 1, " of the row)"));
  }
  RowEvents events(text, answers);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &events) || !events.problem.empty()) {
    throw DataError(str_cat(where, ": ", events.problem.empty() ? "not valid JSON" : events.problem));
  }
  const bool alpaca =
      events.output || (events.instruction && !events.conversation && !events.corpus && !events.messages);
  check_format(events, alpaca, where);
  if (fields != nullptr) {
    fields->unused.add(events.counts.unused);
    fields->optional.add(events.counts.optional);
    if (events.system && !events.system->empty()) fields->optional.add("system");
    if (events.history && !events.history->empty()) fields->optional.add("history");
  }
  Row row;
  row.tag = std::move(events.dataset).value_or("");
  row.system = std::move(events.system).value_or("");
  if (events.conversation) {
    if (row.system.empty()) row.system = std::move(events.instruction).value_or("");
    take_conversation(*events.conversation, where, answers, row);
  } else if (events.messages) {
    take_messages(*events.messages, where, answers, row);
  } else if (events.corpus) {
    row.corpus = require_answer(std::move(*events.corpus), where, "\"corpus\"");
  } else {
    take_alpaca(events, where, answers, row);
  }
  return row;
}

}  // namespace pesc
