// Renders chat templates for templates_test.py. Each line of standard input is one JSON object:
//
//   {"template": "..", "name": "..", "messages": [..], "tools": [..] or null, "add_generation_prompt": false,
//    "tokens": {"bos_token": "<s>", ..}, "control": ["<s>", ..], "extra": {..}, "date": "2025-01-31"}
//
// and each line of standard output one: {"text": "..", "learned": [[begin, end], ..], "data": [..]} in bytes,
// or
// {"error": "..", "of_row": false}.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ops/core/check.h"
#include "runtime/chat/chat_template.h"
#include "runtime/chat/messages.h"

namespace {

using Json = nlohmann::ordered_json;

Json ranges(const std::vector<pesc::TextRange>& of) {
  Json out = Json::array();
  for (const pesc::TextRange& range : of) out.push_back({range.begin, range.end});
  return out;
}

Json answer(const Json& asked) {
  pesc::TemplateSource source{asked.value("name", "template"), asked.at("template").get<std::string>(), {}};
  const Json tokens = asked.value("tokens", Json::object());
  for (const auto& [name, text] : tokens.items())
    source.tokens.named.emplace_back(name, text.get<std::string>());
  source.tokens.control = asked.value("control", std::vector<std::string>());
  pesc::TemplateOptions options;
  options.date = asked.value("date", "");
  options.extra = asked.value("extra", Json::object());
  const pesc::ChatTemplate chat_template(std::move(source), std::move(options));
  pesc::Conversation conversation = pesc::conversation_of(asked, "row");
  // The text alone: nothing is to be learned, so no end of a turn is asked for.
  if (asked.value("text_only", false)) conversation.learned.assign(conversation.learned.size(), false);
  const bool prompt = asked.value("add_generation_prompt", false);
  if (asked.value("require_spans", false)) chat_template.require_spans();
  const pesc::RenderedChat chat =
      prompt ? chat_template.render_prompt(conversation) : chat_template.render(conversation);
  return {{"text", chat.text},
          {"learned", ranges(chat.learned)},
          {"data", ranges(chat.data)},
          {"generation_prompt", chat_template.generation_prompt()},
          {"end_of_turn", chat_template.end_of_turn()}};
}

}  // namespace

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    Json out;
    try {
      out = answer(Json::parse(line));
    } catch (const pesc::TemplateError& error) {
      out = {{"error", error.what()}, {"of_row", error.of_row}};
    } catch (const std::exception& error) {
      out = {{"error", error.what()}, {"of_row", true}};
    }
    std::cout << out.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n' << std::flush;
  }
  return 0;
}
