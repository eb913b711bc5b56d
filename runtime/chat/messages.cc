#include "runtime/chat/messages.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array kRoles = std::to_array<std::pair<std::string_view, std::string_view>>({
    {"human", "user"},
    {"user", "user"},
    {"prompter", "user"},
    {"gpt", "assistant"},
    {"chatgpt", "assistant"},
    {"bing", "assistant"},
    {"bard", "assistant"},
    {"model", "assistant"},
    {"assistant", "assistant"},
    {"system", "system"},
    {"tool", "tool"},
    {"tool_response", "tool"},
    {"observation", "tool"},
});

// Of a message: whether it is learned.
constexpr std::array kMarks = {"train", "weight", "training", "loss"};

// One row, its fields by our names.
class RowForms {
 public:
  RowForms(const Json& row, const std::string& where, const ColumnNames& columns)
      : row_(row), where_(where), columns_(columns) {}

  // Null where the row has no such field, or a null one.
  [[nodiscard]] const Json* field(const std::string& name) const {
    const Json* found = nullptr;
    for (const auto& [theirs, ours] : columns_) {
      if (ours == name && row_.contains(theirs)) found = &row_.at(theirs);
    }
    if (found == nullptr && row_.contains(name) && !columns_.contains(name)) found = &row_.at(name);
    return found == nullptr || found->is_null() ? nullptr : found;
  }
  [[nodiscard]] bool has(const std::string& name) const { return field(name) != nullptr; }

  Conversation conversation() {
    if (has("messages")) {
      messages(*field("messages"), "messages");
    } else if (has("conversations")) {
      messages(*field("conversations"), "conversations");
    } else if (has("conversation")) {
      published(*field("conversation"));
    } else if (has("prompt") && has("completion")) {
      prompt_and_completion();
    } else if (has("query") && has("response")) {
      pair(text("query"), text("response"));
    } else if (has("instruction") && (has("response") || has("output"))) {
      add_history();
      std::string question = text("instruction");
      if (has("input") && !text("input").empty()) question += (question.empty() ? "" : "\n") + text("input");
      const bool responds = has("response") && (!has("output") || !text("response").empty());
      pair(question, text(responds ? "response" : "output"));
    } else {
      bad("the row has none of the known forms (messages; conversations; prompt and completion; query and "
          "response; "
          "instruction and response or output); data.train.columns says which field is which; its fields "
          "are " +
          field_names());
    }
    add_system();
    take_tools();
    for (const Json& message : out_.messages) out_.learned.push_back(message.at("role") == "assistant");
    for (size_t i = 0; i < out_.messages.size(); ++i) take_weight(i);
    return std::move(out_);
  }

 private:
  [[noreturn]] void bad(const std::string& what) const { throw DataError(str_cat(where_, ": ", what)); }

  [[nodiscard]] std::string text(const std::string& name) const {
    const Json& value = *field(name);
    if (!value.is_string()) bad(str_cat("\"", name, "\" is no text"));
    return value.get<std::string>();
  }

  // Of those that are not null, the first.
  [[nodiscard]] std::string field_names() const {
    std::string names;
    for (const auto& [name, value] : row_.items()) {
      if (!value.is_null() && names.size() < 200)
        names += str_cat(names.empty() ? "\"" : ", \"", printable(name), "\"");
    }
    return names.empty() ? "none" : names;
  }

  void add(const char* role, std::string content) {
    out_.messages.push_back({{"role", role}, {"content", std::move(content)}});
  }
  void pair(std::string question, std::string answer) {
    add("user", std::move(question));
    add("assistant", std::move(answer));
  }

  // Earlier turns of an Alpaca row: [["question", "answer"], ..].
  void add_history() {
    if (!has("history")) return;
    const Json& turns = *field("history");
    if (!turns.is_array()) bad("\"history\" is no list");
    for (size_t i = 0; i < turns.size(); ++i) {
      if (!turns[i].is_array() || turns[i].size() != 2 || !turns[i][0].is_string() ||
          !turns[i][1].is_string())
        bad(str_cat("history[", i, "] is no pair of texts, [question, answer]"));
      pair(turns[i][0].get<std::string>(), turns[i][1].get<std::string>());
    }
  }

  void published(const Json& turns) {
    if (!turns.is_array()) bad("\"conversation\" is no list");
    for (size_t i = 0; i < turns.size(); ++i) {
      const std::string place = str_cat("conversation[", i, "]");
      if (!turns[i].is_object()) bad(str_cat(place, " is no object"));
      for (const auto& [mark, form] : {std::pair{"from", "conversations"}, std::pair{"role", "messages"}}) {
        if (turns[i].contains(mark))
          bad(str_cat(place, " is a message with \"", mark, "\"; call the list \"", form,
                      "\", or name it at the file: columns { ", form, ": \"conversation\" }"));
      }
      for (const auto& [name, role] : {std::pair{"input", "user"}, std::pair{"output", "assistant"}}) {
        if (!turns[i].contains(name) || !turns[i].at(name).is_string())
          bad(str_cat(place, ".", name, " is no text"));
        add(role, turns[i].at(name).get<std::string>());
      }
      // All else that it has is of its answer: marks, reasoning, and what is refused or counted as of any message.
      for (const auto& [name, value] : turns[i].items()) {
        if (name == "input" || name == "output" || value.is_null()) continue;
        if (name == kContent) bad(str_cat(place, " has \"content\" beside \"input\" and \"output\""));
        out_.messages.back()[name] = value;
      }
    }
  }

  void prompt_and_completion() {
    for (const auto& [name, role] : {std::pair{"prompt", "user"}, std::pair{"completion", "assistant"}}) {
      if (field(name)->is_array()) {
        messages(*field(name), name);
      } else {
        add(role, text(name));
      }
    }
  }

  void messages(const Json& list, const std::string& name) {
    if (!list.is_array()) bad(str_cat("\"", name, "\" is no list"));
    if (list.empty()) bad(str_cat("\"", name, "\" is empty"));
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string place = str_cat(name, "[", i, "]");
      if (!list[i].is_object()) bad(str_cat(place, " is no object"));
      out_.messages.push_back(message(list[i], place));
    }
  }

  Json message(const Json& given, const std::string& place) const {
    const bool sharegpt = !given.contains("role") && given.contains("from");
    Json out = Json::object();
    for (const auto& [name, value] : given.items()) {
      if (value.is_null()) continue;
      const std::string& ours = sharegpt && name == "from"    ? kRole
                                : sharegpt && name == "value" ? kContent
                                                              : name;
      out[ours] = value;
    }
    if (!out.contains("role") || !out.at("role").is_string()) bad(str_cat(place, " has no role"));
    const std::string role = out.at("role").get<std::string>();
    out["role"] = sharegpt ? known_role(role, place) : checked_role(role, place);
    if (out.contains("content") && !out.at("content").is_string() && !out.at("content").is_array() &&
        !out.at("content").is_object())
      bad(str_cat(place, ".content is neither text nor a list of parts"));
    return out;
  }

  // A role stands in the rendered text as the template's own, where special tokens are found: so it is a
  // plain word.
  std::string checked_role(const std::string& role, const std::string& place) const {
    const bool plain = !role.empty() && role.size() <= 32 && std::ranges::all_of(role, [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
             c == '-';
    });
    if (!plain) bad(str_cat(place, ".role is no plain word; roles are system, user, assistant and tool"));
    return role;
  }

  std::string known_role(const std::string& role, const std::string& place) const {
    for (const auto& [theirs, ours] : kRoles) {
      if (theirs == role) return std::string(ours);
    }
    const std::string plain = checked_role(role, place);
    bad(str_cat(place, ".from is \"", plain, "\"; human, gpt, system, tool and the like are known"));
  }

  // The row's own system text, before messages that have none.
  void add_system() {
    const bool of_published = has("conversation") && has("instruction");
    const std::string name = of_published ? "instruction" : has("system") ? "system" : "system_prompt";
    if (!has(name) || (!of_published && text(name).empty())) return;
    const std::string system = text(name);
    if (system.empty()) return;
    if (!out_.messages.empty() && out_.messages[0].at("role") == "system")
      bad(str_cat("\"", name, "\" and the first message both give the system text"));
    out_.messages.insert(out_.messages.begin(), Json{{"role", "system"}, {"content", system}});
  }

  void take_tools() {
    if (!has("tools")) return;
    out_.tools = *field("tools");
    if (out_.tools.is_string()) {
      const std::string list = out_.tools.get<std::string>();
      out_.tools = list.empty() ? Json() : Json::parse(list, nullptr, false);
    }
    if (out_.tools.is_array() && out_.tools.empty()) out_.tools = Json();
    if (out_.tools.is_discarded() || (!out_.tools.is_array() && !out_.tools.is_null()))
      bad("\"tools\" is no list of tools");
  }

  // These say whether an answer is learned; the template does not see them.
  void take_weight(size_t i) {
    Json& message = out_.messages[i];
    std::optional<bool> said;
    for (const char* name : kMarks) {
      if (!message.contains(name)) continue;
      const Json mark = message.at(name);
      message.erase(name);
      const bool number = mark.is_number() && (mark == 0 || mark == 1);
      if (!number && !mark.is_boolean())
        bad(str_cat("\"", name, "\" of message ", i, " is neither 0 nor 1 nor true nor false"));
      const bool wanted = mark.is_boolean() ? mark.get<bool>() : mark == 1;
      if (said.value_or(wanted) != wanted)
        bad(str_cat("\"", name, "\" of message ", i,
                    " contradicts another of \"weight\", \"train\", \"training\" and \"loss\""));
      said = wanted;
      if (!wanted) out_.learned[i] = false;
      if (wanted && !out_.learned[i] && message.at("role") != "assistant")
        bad(str_cat("message ", i, " is to be learned (\"", name, "\"), but only the assistant's are"));
    }
  }

  static inline const std::string kRole = "role";
  static inline const std::string kContent = "content";
  const Json& row_;
  const std::string& where_;
  const ColumnNames& columns_;
  Conversation out_{Json::array(), Json(), {}};
};

}  // namespace

Conversation conversation_of(const Json& row, const std::string& where, const ColumnNames& columns) {
  if (!row.is_object()) throw DataError(str_cat(where, ": the row is no JSON object"));
  return RowForms(row, where, columns).conversation();
}

}  // namespace pesc
