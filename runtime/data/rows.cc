#include "runtime/data/rows.h"

#include <optional>
#include <utility>
#include <vector>

#include "ops/core/check.h"
#include "runtime/data/row_events.h"
#include "runtime/data/row_forms.h"
#include "runtime/text/json_mistake.h"
#include "runtime/text/printable.h"
#include "runtime/text/utf8.h"

namespace pesc {
namespace {

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

// How to write a known form of another program here; empty for others.
std::string how_to_convert(const std::string& fields) {
  const auto has = [&](const char* name) {
    return fields.find(str_cat('"', name, '"')) != std::string::npos;
  };
  const auto pair = [](const char* question, const char* answer) {
    return str_cat("; write \"", question, "\" as \"instruction\" and \"", answer,
                   "\" as \"output\", or name them at the file: columns { instruction: \"", question,
                   "\" output: \"", answer, "\" }");
  };
  for (const char* answer : {"completion", "response", "answer", "targets", "target", "outputs", "answers"}) {
    for (const char* question : {"prompt", "question", "query", "inputs", "instruction", "problem"})
      if (has(question) && has(answer)) return pair(question, answer);
  }
  for (const char* list : {"prompt", "completion", "chat", "dialogue", "dialog", "turns"})
    if (has(list))
      return str_cat("; write the turns of \"", list, "\" as \"messages\" with \"role\" and \"content\"");
  if (has("text"))
    return "; write plain text to learn from as \"corpus\", or name it at the file: columns { corpus: "
           "\"text\" }";
  return "";
}

// A row without a field that data.train[].columns names is not what was described.
void require_columns(const RowEvents& events, const RowColumns& columns, const std::string& where) {
  for (const auto& [theirs, ours] : columns.names) {
    if (events.seen_columns.contains(theirs)) continue;
    throw DataError(str_cat(where, ": has no field ", in_quotes(theirs, kCited), ", which ", columns.field,
                            ".", ours, " names; its fields are ",
                            events.all_names.empty() ? "none" : events.all_names));
  }
}

// The row is in one form, or is refused.
void check_format(const RowEvents& events, bool alpaca, const std::vector<OtherForm>& others,
                  const std::string& where) {
  const int formats = int{alpaca} + events.conversation.has_value() + events.messages.has_value() +
                      events.corpus.has_value() + static_cast<int>(others.size());
  if (formats == 0 && events.holds_columns)
    throw DataError(
        str_cat(where, ": the row is an object of columns; its fields are ", events.fields, kPandasColumns));
  const std::string conversion = formats == 0 ? how_to_convert(events.fields) : "";
  if (formats == 0 && !events.holds_rows.empty() && conversion.empty()) {
    throw DataError(
        str_cat(where, ": \"", events.holds_rows,
                "\" holds a list of objects; if these are the rows, take the list out of it: rows are "
                "lines of JSON, or the elements of one JSON array"));
  }
  if (formats != 1) {
    throw DataError(str_cat(where, formats == 0 ? ": has none of " : ": has more than one of ",
                            "\"conversation\", \"messages\", \"corpus\", \"instruction\" with \"output\", "
                            "\"conversations\", \"prompt\" with \"completion\", \"query\" with \"response\"",
                            "; its fields are ", events.fields.empty() ? "none" : events.fields, conversion));
  }
  if (alpaca && events.says_response)
    throw DataError(
        str_cat(where,
                ": has more than one form of a row (\"instruction\", \"output\", and \"response\"); keep "
                "the fields of one of them"));
  if (!others.empty()) return;
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

Row parse_row(std::string_view text, const std::string& where, Answers answers, RowFields* fields,
              const RowColumns& columns) {
  // The JSON reader would take a zero byte for the end of its input and accept anything behind it.
  if (const size_t at = text.find('\0'); at != std::string_view::npos) {
    throw DataError(str_cat(where, ": holds a NUL byte (byte ", at + 1, " of the row)"));
  }
  if (const size_t at = valid_utf8_prefix(text); at != text.size()) {
    throw DataError(str_cat(where, ": is not valid UTF-8 (byte ", at + 1, " of the row)"));
  }
  RowEvents events(text, answers, columns);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &events) || !events.problem.empty()) {
    throw DataError(str_cat(where, ": ", events.problem.empty() ? "is not valid JSON" : events.problem));
  }
  require_columns(events, columns, where);
  const std::vector<OtherForm> others = other_forms(events, answers);
  const bool alpaca = events.output || (events.instruction && !events.conversation && !events.corpus &&
                                        !events.messages && others.empty());
  check_format(events, alpaca, others, where);
  if (fields != nullptr) {
    if (others.empty())
      for (const std::string& name : events.of_other_forms) events.counts.unused.add(columns.theirs(name));
    fields->unused.add(events.counts.unused);
    fields->optional.add(events.counts.optional);
    if (events.system && !events.system->empty()) fields->optional.add("system");
    if (events.history && !events.history->empty()) fields->optional.add("history");
  }
  if (!others.empty())
    return row_in_other_form(others.front(), text, events, where, answers, columns, fields);
  Row row;
  row.tag = std::move(events.dataset).value_or("");
  row.system = std::move(events.system).value_or("");
  if (events.conversation) {
    if (row.system.empty()) row.system = std::move(events.instruction).value_or("");
    take_conversation(*events.conversation, where, answers, row);
  } else if (events.messages) {
    const auto place = [](size_t i) { return str_cat("messages[", i, "]"); };
    const auto content = [](size_t i) { return str_cat("messages[", i, "].content"); };
    take_messages(*events.messages, {place, content}, where, answers, row);
  } else if (events.corpus) {
    row.corpus = require_answer(std::move(*events.corpus), where, "\"corpus\"");
  } else {
    take_alpaca(events, where, answers, row);
  }
  return row;
}

}  // namespace pesc
