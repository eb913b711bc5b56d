#include "runtime/chat/shown_fields.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "runtime/chat/jinja/interpreter.h"
#include "runtime/chat/jinja/value.h"
#include "runtime/chat/messages.h"

namespace pesc {
namespace {

using Json = nlohmann::ordered_json;

// The first line that holds something, without white space around it: templates trim and indent.
std::string_view first_words(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  text = text.substr(begin, text.find('\n', begin) - begin);
  return text.substr(0, text.find_last_not_of(" \t\r") + 1);
}

std::string_view reasoning_of(const Json& message) {
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
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

ShownFields shown_fields(const Conversation& conversation, const jinja::Text& text,
                         const std::vector<jinja::Stretch>& stretches) {
  ShownFields out;
  for (size_t i = 0; i < conversation.messages.size(); ++i) {
    const Json& message = conversation.messages[i];
    if (message.value("role", "") != "assistant") continue;
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
