// libFuzzer target: any bytes, taken as a chat template, are either refused with a TemplateError or render a
// fixed conversation, whose spans keep the promises of runtime/chat/chat_template.h; and taken as a row, are
// either refused with a DataError or give messages that a template renders.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "ops/core/check.h"
#include "runtime/chat/chat_template.h"
#include "runtime/chat/messages.h"
#include "runtime/text/utf8.h"

namespace {

using Json = nlohmann::ordered_json;

void require(bool holds) {
  if (!holds) std::abort();
}

void check_ranges(const std::string& text, const std::vector<pesc::TextRange>& ranges) {
  size_t at = 0;
  for (const pesc::TextRange& range : ranges) {
    require(range.begin >= at && range.begin < range.end && range.end <= text.size());
    at = range.end;
  }
}

void check_chat(const pesc::RenderedChat& chat) {
  require(pesc::valid_utf8_prefix(chat.text) == chat.text.size());
  check_ranges(chat.text, chat.learned);
  check_ranges(chat.text, chat.data);
}

const pesc::Conversation& conversation() {
  static const pesc::Conversation made = pesc::conversation_of(Json::parse(R"({
      "tools": [{"type": "function", "function": {"name": "look", "parameters": {"properties": {"what": {"type": "string"}}}}}],
      "messages": [{"role": "system", "content": "S \u00e9"}, {"role": "user", "content": "Q <b> 'q' \"x\" \ud83d\ude00"},
          {"role": "assistant", "content": "A", "reasoning_content": "R\n", "tool_calls":
              [{"id": "call00001", "function": {"name": "look", "arguments": {"what": "here", "n": 1.5}}}]},
          {"role": "tool", "content": "T", "tool_call_id": "call00001"}, {"role": "assistant", "content": "<think>x</think>B"},
          {"role": "user", "content": ""}, {"role": "assistant", "content": "C", "train": false}]})"),
                                                               "row");
  return made;
}

pesc::TemplateOptions options() {
  pesc::TemplateOptions made;
  made.date = "2025-01-31";
  made.limits = {20'000, 100, 1 << 16, 1 << 20};
  return made;
}

pesc::ChatTemplate compiled(std::string_view text) {
  return {{"t", std::string(text), {{{"bos_token", "<s>"}, {"eos_token", "</s>"}}, {"<s>", "</s>", "<end>"}}},
          options()};
}

void try_template(std::string_view text) {
  try {
    const pesc::ChatTemplate made = compiled(text);
    check_chat(made.render_prompt(conversation()));
    check_chat(made.render(conversation()));
    made.require_spans();
  } catch (const pesc::TemplateError& error) {
    require(std::string_view(error.what()).starts_with("t:"));
  }
}

void try_row(std::string_view text) {
  static const pesc::ChatTemplate chatml = compiled(
      "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m|tojson }}{{ tools }}<end>{% endfor %}");
  const Json row = Json::parse(text, nullptr, false);
  if (row.is_discarded()) return;
  try {
    const pesc::Conversation made = pesc::conversation_of(row, "row");
    require(made.messages.is_array() && made.learned.size() == made.messages.size());
    check_chat(chatml.render(made));
  } catch (const pesc::DataError&) {
    return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (text.starts_with('{') && !text.starts_with("{{") && !text.starts_with("{%") &&
      !text.starts_with("{#")) {
    try_row(text);
  } else {
    try_template(text);
  }
  return 0;
}
