#include "runtime/chat/conversation_values.h"

#include <limits>
#include <string>
#include <string_view>

#include "ops/core/check.h"

namespace pesc {
namespace {

using jinja::Value;
using Json = nlohmann::ordered_json;

constexpr int kMaxJsonDepth = 100;

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
  for (const std::string_view name : {"reasoning_content", "thinking", "reasoning"}) {
    for (const auto& [field, value] : fields) {
      if (field == name && thought == nullptr) thought = &value;
    }
  }
  if (thought != nullptr) put("thinking", *thought);
  for (const auto& [name, value] : fields) put(name, value);
  if (thought != nullptr) put("reasoning_content", *thought);
  return Value(static_cast<const jinja::Dict*>(dict));
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

}  // namespace pesc
