#include "runtime/data/chat_row.h"

#include <algorithm>
#include <array>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <vector>

#include "ops/core/check.h"
#include "runtime/chat/messages.h"
#include "runtime/text/json_mistake.h"
#include "runtime/text/printable.h"
#include "runtime/text/utf8.h"

namespace pesc {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxDepth = 64;
constexpr int64_t kMaxValues = 1 << 20;
constexpr size_t kMaxKeys = 4096;  // of one object
constexpr std::array kMedia = std::to_array<std::string_view>(
    {"image", "images", "image_url", "video", "videos", "audio", "audios", "input_audio"});
constexpr std::array kFormFields = std::to_array<std::string_view>(
    {"messages", "conversations", "conversation", "prompt", "completion", "query", "response", "instruction",
     "input", "output", "history", "corpus"});
constexpr std::array kOtherMasks =
    std::to_array<std::string_view>({"mask", "masked", "ignore", "trainable", "loss_weight", "loss_scale",
                                     "train_detail", "training_detail", "label"});

bool blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

template <class List>
bool in(const List& list, std::string_view name) {
  return std::ranges::find(list, name) != list.end();
}

// The whole row as a tree, whose size is bounded while it is read.
class BoundedReader {
 public:
  explicit BoundedReader(const std::string& where) : where_(where) {}

  Json read(std::string_view text) {
    if (const size_t at = text.find('\0'); at != std::string_view::npos)
      bad(str_cat("holds a NUL byte (byte ", at + 1, " of the row)"));
    if (const size_t at = valid_utf8_prefix(text); at != text.size())
      bad(str_cat("is not valid UTF-8 (byte ", at + 1, " of the row)"));
    try {
      Json row = Json::parse(text, [this](int depth, Json::parse_event_t event, Json& value) {
        take(depth, event, value);
        return true;
      });
      if (!row.is_object()) bad(str_cat("the row is ", row.type_name(), ", not a JSON object"));
      return row;
    } catch (const Json::parse_error& error) {
      bad(str_cat("is not valid JSON at byte ", error.byte,
                  " of the row: ", json_mistake(text, error.byte, error.what())));
    } catch (const Json::exception& error) {
      bad(str_cat("is not valid JSON: ", printable(error.what())));
    }
  }

 private:
  using Event = Json::parse_event_t;

  [[noreturn]] void bad(const std::string& what) const { throw DataError(str_cat(where_, ": ", what)); }

  void take(int depth, Event event, const Json& value) {
    if (depth > kMaxDepth) bad(str_cat("nested deeper than ", kMaxDepth, " levels"));
    if (event == Event::object_start) keys_.emplace_back();
    if (event == Event::object_end) keys_.pop_back();
    if (event == Event::object_start || event == Event::array_start || event == Event::value) {
      if (++values_ > kMaxValues) bad(str_cat("the row has more than ", kMaxValues, " values"));
    }
    if (event == Event::key) {
      const auto& name = value.get_ref<const std::string&>();
      if (!keys_.back().insert(name).second) bad(str_cat("the field ", in_quotes(name), " appears twice"));
      if (keys_.back().size() > kMaxKeys) bad(str_cat("an object has more than ", kMaxKeys, " fields"));
    }
    if (event == Event::value && value.is_string() &&
        value.get_ref<const std::string&>().find('\0') != std::string::npos)
      bad("a text holds a NUL character");
  }

  const std::string& where_;
  int64_t values_ = 0;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
};

bool has(const Json& row, const char* name) {
  const auto found = row.find(name);
  return found != row.end() && !found->is_null();
}

// Texts alone, one after another.
std::string text_of(const Json& content) {
  if (content.is_string()) return content.get<std::string>();
  std::string text;
  if (content.is_array()) {
    for (const Json& part : content) {
      if (part.is_object() && part.contains("text") && part.at("text").is_string())
        text += part.at("text").get<std::string>();
    }
  }
  return text;
}

std::string content_of(const Json& message) {
  return message.contains("content") ? text_of(message.at("content")) : "";
}

class ChatRow {
 public:
  ChatRow(Json row, const std::string& where, Answers answers)
      : row_(std::move(row)), where_(where), answers_(answers) {}

  [[nodiscard]] Row read(RowFields* fields) {
    Row out;
    if (has(row_, "dataset")) {
      if (!row_.at("dataset").is_string()) bad("\"dataset\" is not a string");
      out.tag = row_.at("dataset").get<std::string>();
    }
    look_at_fields(fields);
    if (answers_ == Answers::kAllButLast) add_missing_answer();
    Conversation conversation = conversation_of(row_, where_);
    if (conversation.messages.empty()) bad("has no message");
    for (size_t i = 0; i < conversation.messages.size(); ++i)
      check_message(conversation.messages[i], i, i + 1 == conversation.messages.size());
    if (const auto& role = conversation.messages.back().at("role");
        answers_ == Answers::kAll && role != "assistant") {
      bad(str_cat("the last message is not the assistant's (its role is \"",
                  role.get_ref<const std::string&>(), "\"); nothing would be learned behind it"));
    }
    take_texts(conversation, out);
    out.chat = std::make_shared<const Conversation>(std::move(conversation));
    return out;
  }

 private:
  [[noreturn]] void bad(const std::string& what) const { throw DataError(str_cat(where_, ": ", what)); }

  // Which fields the row's form reads. What would change what is seen or learned is refused, all others count
  // as unused.
  void look_at_fields(RowFields* fields) const {
    refuse_two_forms();
    std::vector<std::string_view> read{"dataset", "system", "system_prompt", "tools"};
    if (has(row_, "messages")) {
      read.push_back("messages");
    } else if (has(row_, "conversations")) {
      read.push_back("conversations");
    } else if (has(row_, "conversation")) {
      read.insert(read.end(), {"conversation", "instruction"});
    } else if (has(row_, "prompt")) {
      read.insert(read.end(), {"prompt", "completion"});
    } else if (has(row_, "query")) {
      read.insert(read.end(), {"query", "response"});
    } else {
      read.insert(
          read.end(),
          {"instruction", "input", "history",
           has(row_, "response") && !says_nothing("response", row_.at("response")) ? "response" : "output"});
    }
    for (const auto& [name, value] : row_.items()) {
      if (value.is_null() || in(read, name)) continue;
      if (name == "weight" || name == "train") {
        if (value == 1 || value == true) continue;
        bad(str_cat("\"", name, "\" is ", printable(value.dump()),
                    "; rows have no weight of their own: leave the row out, or give its file a weight "
                    "(data.train.weight)"));
      }
      if (name == "corpus" && !says_nothing(name, value))
        bad("\"corpus\" has no place beside a conversation");
      if (const std::string_view why = refused_row_field(name); !why.empty() && !says_nothing(name, value))
        bad(str_cat("\"", name, "\" ", why));
      // false and 0 say something of a field that nobody knows: "learn": false.
      const bool plain = value.is_boolean() || value.is_number();
      const bool unknown = plain && refused_row_field(name).empty() && !in(kFormFields, name);
      if (fields != nullptr && (unknown || !says_nothing(name, value))) fields->unused.add(printable(name));
    }
    for (const char* name : {"system", "system_prompt", "history", "tools"}) {
      if (fields != nullptr && has(row_, name) && !says_nothing(name, row_.at(name)))
        fields->optional.add(name);
    }
  }

  // Refuses a row that is complete in two forms: which one is learned would depend on the prompt.
  void refuse_two_forms() const {
    std::string found;
    int forms = 0;
    const auto form = [&](std::initializer_list<const char*> names) {
      for (const char* name : names)
        if (!has(row_, name) || says_nothing(name, row_.at(name))) return;
      ++forms;
      for (const char* name : names) found += str_cat(found.empty() ? "\"" : ", \"", name, "\"");
    };
    form({"messages"});
    form({"conversations"});
    form({"conversation"});
    if (forms == 0) {  // a list goes before texts, which data sets have beside it
      form({"prompt", "completion"});
      form({"query", "response"});
      form({"instruction", "output"});
      if (!has(row_, "query")) form({"instruction", "response"});
    }
    if (forms > 1)
      bad(str_cat("has more than one form of a row (", found, "); keep the fields of one of them"));
  }

  // A question waits for its answer.
  void add_missing_answer() {
    for (const auto& [question, answer] :
         {std::pair{"prompt", "completion"}, std::pair{"query", "response"}}) {
      if (has(row_, question) && !has(row_, answer)) row_[answer] = "";
    }
    if (has(row_, "instruction") && !has(row_, "output") && !has(row_, "response")) row_["output"] = "";
    if (!has(row_, "conversation") || !row_.at("conversation").is_array() || row_.at("conversation").empty())
      return;
    Json& last = row_.at("conversation").back();
    if (last.is_object() && !has(last, "output")) last["output"] = "";
  }

  void check_message(const Json& message, size_t number, bool last) const {
    const std::string place = str_cat("message ", number);
    for (const auto& [name, value] : message.items()) {
      if (says_nothing(name, value) || (!in(kMedia, name) && !in(kOtherMasks, name))) continue;
      bad(str_cat(place, ": \"", name, "\" ",
                  refused_element_field(name).empty() ? std::string_view("is not supported: rows are text")
                                                      : refused_element_field(name)));
    }
    if (message.contains("content") && message.at("content").is_array()) {
      for (const Json& part : message.at("content")) {
        if (!part.is_object() || !part.contains("text") || !part.at("text").is_string())
          bad(str_cat(place, ": a part of its content is no text; rows are text"));
      }
    }
    if (message.contains("content") && message.at("content").is_object() && message.at("role") != "tool")
      bad(str_cat(place, ": its content is an object; write its text"));
    if (message.at("role") != "assistant" || (last && answers_ == Answers::kAllButLast)) return;
    const auto says = [&](const char* name) {
      return message.contains(name) && !says_nothing(name, message.at(name));
    };
    if (blank(content_of(message)) && !says("tool_calls") && !says("reasoning_content"))
      throw EmptyAnswer(
          str_cat(where_, ": ", place, " is an empty answer; there is nothing to learn from it"));
  }

  // System and turns, as far as the messages are such.
  static void take_texts(const Conversation& conversation, Row& out) {
    for (size_t i = 0; i < conversation.messages.size(); ++i) {
      const Json& message = conversation.messages[i];
      const Json& role = message.at("role");
      if (role == "system" && i == 0) out.system = content_of(message);
      if (role == "user") out.turns.push_back({content_of(message), {}, false});
      if (role != "assistant") continue;
      if (out.turns.empty() || !out.turns.back().answer.empty()) out.turns.push_back({{}, {}, false});
      out.turns.back().answer = content_of(message);
      out.turns.back().learned = conversation.learned[i];
    }
    if (out.turns.empty()) out.turns.push_back({{}, {}, false});
  }

  Json row_;
  const std::string& where_;
  Answers answers_;
};

// A row with the experiment's names for its fields.
Json with_our_names(Json row, const RowColumns& columns, const std::string& where) {
  if (columns.names.empty()) return row;
  for (const auto& [theirs, ours] : columns.names) {
    if (row.contains(theirs)) continue;
    std::string fields;
    for (const auto& [name, value] : row.items()) {
      if (fields.size() < 200) fields += str_cat(fields.empty() ? "\"" : ", \"", printable(name), "\"");
    }
    throw DataError(str_cat(where, ": has no field ", in_quotes(theirs), ", which ", columns.field, ".", ours,
                            " names; its fields are ", fields.empty() ? "none" : fields));
  }
  Json out = Json::object();
  for (auto& [name, value] : row.items()) {
    if (const std::string_view ours = columns.ours(name); !ours.empty()) out[std::string(ours)] = value;
  }
  return out;
}

// Whether it asks something, perhaps without an answer.
bool asks(const Json& row) {
  for (const char* name : {"messages", "conversations", "conversation", "prompt", "query", "instruction"}) {
    if (has(row, name)) return true;
  }
  return false;
}

}  // namespace

Row parse_any_row(std::string_view text, const std::string& where, Answers answers, RowUse use,
                  RowFields* fields, const RowColumns& columns) {
  if (use == RowUse::kPublished) return parse_row(text, where, answers, fields, columns);
  Json row = with_our_names(BoundedReader(where).read(text), columns, where);
  // Plain text, or what parse_row says is wrong with it.
  if (!asks(row)) return parse_row(text, where, answers, fields, columns);
  return ChatRow(std::move(row), where, answers).read(fields);
}

Conversation conversation_of_turns(const Row& row) {
  Conversation out{Json::array(), Json(), {}};
  const auto add = [&](const char* role, const std::string& content, bool learned) {
    out.messages.push_back({{"role", role}, {"content", content}});
    out.learned.push_back(learned);
  };
  if (!row.system.empty()) add("system", row.system, false);
  for (const Turn& turn : row.turns) {
    add("user", turn.prompt, false);
    add("assistant", turn.answer, turn.learned);
  }
  return out;
}

}  // namespace pesc
