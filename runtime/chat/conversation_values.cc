#include "runtime/chat/conversation_values.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "ops/core/check.h"
#include "runtime/chat/jinja/interpreter.h"
#include "runtime/chat/jinja/printing.h"
#include "runtime/chat/messages.h"
#include "runtime/chat/shown_fields.h"

namespace pesc {
namespace {

using jinja::Value;
using Json = nlohmann::ordered_json;

constexpr int kMaxJsonDepth = 100;
constexpr size_t kLongestName = 64;
constexpr std::array kThoughtFields = {"reasoning_content", "thinking", "reasoning"};

Value converted(jinja::Heap& heap, const Json& json, jinja::Origin origin, int depth) {
  if (depth > kMaxJsonDepth)
    throw jinja::Failure(str_cat("the conversation is nested more than ", kMaxJsonDepth, " deep"));
  switch (json.type()) {
    case Json::value_t::null:
      return Value::none();
    case Json::value_t::boolean:
      return Value(json.get<bool>());
    case Json::value_t::number_integer:
      return Value(json.get<int64_t>());
    case Json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        throw jinja::Failure(str_cat("the number ", json.get<uint64_t>(), " does not fit 64 bits"));
      return Value(json.get<int64_t>());
    case Json::value_t::number_float:
      return Value(json.get<double>());
    case Json::value_t::string:
      return heap.string(json.get_ref<const std::string&>(), origin);
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const Json& item : json) items.push_back(converted(heap, item, origin, depth + 1));
      return heap.list(std::move(items));
    }
    case Json::value_t::object: {
      auto* dict = heap.make<jinja::Dict>();
      heap.charge(json.size() * 2 * sizeof(Value));
      for (const auto& [key, value] : json.items())
        dict->set(heap.string(key, origin), converted(heap, value, origin, depth + 1));
      return Value(static_cast<const jinja::Dict*>(dict));
    }
    default:
      throw jinja::Failure("the conversation holds what is no JSON");
  }
}

// Fields of an assistant's message that it has not written.
bool not_written(std::string_view name) {
  return name == "name" || name == "tool_call_id" || name == "id";
}

Value message_value(jinja::Heap& heap, const Json& message, size_t number) {
  auto* dict = heap.make<jinja::Dict>();
  dict->message = static_cast<int64_t>(number);
  const bool assistant = message.value("role", "") == "assistant";
  std::vector<std::pair<std::string_view, Value>> fields;
  for (const auto& [name, value] : message.items()) {
    if (value.is_null()) continue;
    const jinja::Origin kind = assistant && !not_written(name) ? jinja::kFromAssistant : jinja::kFromData;
    const jinja::Origin origin = name == "role" ? jinja::kOwnText : jinja::origin_of(kind, number);
    fields.emplace_back(name, converted(heap, value, origin, 0));
  }
  const auto put = [&](std::string_view name, const Value& value) {
    heap.charge(2 * sizeof(Value));
    dict->set(heap.string(name), value);
  };
  const Value* thought = nullptr;
  for (const std::string_view name : kThoughtFields) {
    for (const auto& [field, value] : fields) {
      if (field == name && thought == nullptr) thought = &value;
    }
  }
  if (thought != nullptr) put("thinking", *thought);
  for (const auto& [name, value] : fields) put(name, value);
  if (thought != nullptr) put("reasoning_content", *thought);
  return Value(static_cast<const jinja::Dict*>(dict));
}

// The first line that holds something, without white space around it: templates trim and indent.
std::string_view first_words(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  text = text.substr(begin, text.find('\n', begin) - begin);
  return text.substr(0, text.find_last_not_of(" \t\r") + 1);
}

std::string_view reasoning_of(const Json& message) {
  for (const char* name : kThoughtFields) {
    if (!message.contains(name) || !message[name].is_string()) continue;
    if (const auto words = first_words(message[name].get_ref<const std::string&>()); !words.empty())
      return words;
  }
  return {};
}

std::vector<std::string_view> functions_of(const Json& message) {
  std::vector<std::string_view> names;
  if (!message.contains("tool_calls") || !message["tool_calls"].is_array()) return names;
  for (const Json& call : message["tool_calls"]) {
    if (!call.is_object()) continue;
    const Json& function =
        call.contains("function") && call["function"].is_object() ? call["function"] : call;
    if (!function.contains("name") || !function["name"].is_string()) continue;
    if (const std::string& name = function["name"].get_ref<const std::string&>(); !name.empty())
      names.emplace_back(name);
  }
  return names;
}

// The beginning of what a message says; empty where it says nothing.
std::string_view content_of(const Json& message) {
  const auto content = message.find("content");
  if (content == message.end()) return {};
  if (content->is_string()) return first_words(content->get_ref<const std::string&>());
  if (!content->is_array()) return {};
  for (const Json& part : *content) {
    const auto text = part.is_object() ? part.find("text") : part.end();
    if (!part.is_object() || text == part.end() || !text->is_string()) continue;
    if (const auto words = first_words(text->get_ref<const std::string&>()); !words.empty()) return words;
  }
  return {};
}

// Whether something of message `number`, of the user, the system or a tool, was written.
bool is_shown(size_t number, const jinja::Text& text) {
  return std::ranges::any_of(text.spans, [number](const jinja::Span& span) {
    return (span.origin & jinja::kFromData) != 0 && jinja::message_of(span.origin) == number;
  });
}

// What was written of message `number`, and while the template went over it.
std::string text_of_message(size_t number, const jinja::Text& text,
                            const std::vector<jinja::Stretch>& stretches) {
  std::string out;
  for (const jinja::Span& span : text.spans) {
    if ((span.origin & jinja::kFromAssistant) != 0 && jinja::message_of(span.origin) == number)
      out.append(text.bytes, span.begin, span.end - span.begin);
  }
  for (const jinja::Stretch& stretch : stretches) {
    if (stretch.message != static_cast<int64_t>(number)) continue;
    out += '\n';
    out.append(text.bytes, stretch.begin, stretch.end - stretch.begin);
  }
  return out;
}

}  // namespace

Value value_of(jinja::Heap& heap, const Json& json, jinja::Origin origin) {
  return converted(heap, json, origin, 0);
}

Value messages_value(jinja::Heap& heap, const Json& messages) {
  std::vector<Value> items;
  for (size_t i = 0; i < messages.size(); ++i) items.push_back(message_value(heap, messages[i], i));
  return heap.list(std::move(items));
}

int64_t message_with_printed_parts(const Json& messages, std::string_view text) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const auto content = messages[i].find("content");
    if (content == messages[i].end() || !content->is_array()) continue;
    constexpr int64_t kMemory = int64_t{1} << 30;
    jinja::Heap heap(kMemory, kMemory);  // the template has rendered as much
    const jinja::Text printed = jinja::to_text(heap, value_of(heap, *content, jinja::kOwnText));
    if (text.find(printed.bytes) != std::string_view::npos) return static_cast<int64_t>(i);
  }
  return -1;
}

std::map<std::string, ShownFields::Count> read_fields(const jinja::Interpreter& in, const Value& messages,
                                                      const Conversation& conversation) {
  std::map<std::string, ShownFields::Count> out;
  if (!conversation.tools.is_null()) out["tools"] = {1, in.has_read("tools") ? 1 : 0};
  for (size_t i = 0; i < messages.list->items.size(); ++i) {
    const jinja::Dict& message = *messages.list->items[i].dict;
    const bool assistant = conversation.messages[i].value("role", "") == "assistant";
    for (size_t place = 0; place < message.items.size(); ++place) {
      const auto& [key, value] = message.items[place];
      const std::string& name = key.bytes();
      if (name == "role" || name == "content") continue;
      // false and 0 of a field that nobody knows say something: "learn": false.
      const auto given = conversation.messages[i].find(name);
      const bool plain =
          given != conversation.messages[i].end() && (given->is_boolean() || given->is_number());
      if (!plain && !jinja::truthy(value)) continue;
      if (assistant &&
          (name == "tool_calls" || std::ranges::find(kThoughtFields, name) != kThoughtFields.end()))
        continue;
      ShownFields::Count& count = out["messages[]." + name.substr(0, kLongestName)];
      count.messages = 1;
      if (in.has_read(message, place)) count.shown = 1;
    }
  }
  return out;
}

ShownFields shown_fields(const Conversation& conversation, const jinja::Text& text,
                         const std::vector<jinja::Stretch>& stretches) {
  ShownFields out;
  for (size_t i = 0; i < conversation.messages.size(); ++i) {
    const Json& message = conversation.messages[i];
    const std::string role = message.value("role", "");
    if (role != "assistant") {
      if (content_of(message).empty()) continue;
      const bool shown = is_shown(i, text);
      if (role == "system" || role == "developer") {
        out.system.add({1, shown ? 1 : 0});
      } else if (role == "tool" || role == "function" || role == "ipython") {
        out.results.add({1, shown ? 1 : 0});
      } else if (!shown && out.unshown_question < 0) {
        out.unshown_question = static_cast<int64_t>(i);
      }
      continue;
    }
    const std::string_view reasoning = reasoning_of(message);
    const std::vector<std::string_view> functions = functions_of(message);
    if (reasoning.empty() && functions.empty()) continue;
    const std::string written = text_of_message(i, text, stretches);
    const auto appears = [&](std::string_view words) { return written.find(words) != std::string::npos; };
    if (!reasoning.empty()) out.reasoning.add({1, appears(reasoning) ? 1 : 0});
    if (!functions.empty()) out.tool_calls.add({1, std::ranges::any_of(functions, appears) ? 1 : 0});
  }
  return out;
}

}  // namespace pesc
