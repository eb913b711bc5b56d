// What is learned of a rendered chat, against spans written by hand from the published formats.
#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "runtime/chat/chat_template.h"
#include "tests/runtime/chat/pieces.h"

namespace pesc {
namespace {

using Json = nlohmann::ordered_json;

ChatTemplate compiled(std::string_view text, std::vector<std::string> control, const std::string& eos,
                      const std::string& bos = "<s>") {
  TemplateSource source{"test.jinja", std::string(text), {}};
  source.tokens.named = {{"bos_token", bos}, {"eos_token", eos}};
  source.tokens.control = std::move(control);
  return ChatTemplate(std::move(source), {});
}

Conversation conversation(const char* messages) {
  return conversation_of(Json{{"messages", Json::parse(messages)}}, "row");
}

constexpr const char* kTwoTurns = R"([{"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"}, {"role": "assistant", "content": "1."},
    {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2."}])";

TEST(ChatSpans, ChatMlLearnsItsAnswers) {
  const auto chatml = compiled(builtin_template("chatml"), {"<|im_start|>", "<|im_end|>"}, "<|im_end|>");
  chatml.require_spans();
  EXPECT_EQ(chatml.generation_prompt(), "<|im_start|>assistant\n");
  EXPECT_EQ(chatml.end_of_turn(), "<|im_end|>");
  EXPECT_EQ(chatml.control_tokens(), (std::vector<std::string>{"<|im_start|>", "<|im_end|>"}));
  const std::string answer = "<|im_end|>\n<|im_start|>assistant\n";
  expect_pieces(chatml.render(conversation(kTwoTurns)),
                written("<|im_start|>system\n") + data("Be brief.") +
                    written("<|im_end|>\n<|im_start|>user\n") + data("One?") + written(answer) +
                    learned("1.<|im_end|>") + written("\n<|im_start|>user\n") + data("Two?") +
                    written(answer) + learned("2.<|im_end|>") + written("\n"));
}

TEST(ChatSpans, Llama3TrimsAndKeepsTheEndOfTurn) {
  const auto llama = compiled(builtin_template("llama3"),
                              {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
                              "<|eot_id|>", "<|begin_of_text|>");
  llama.require_spans();
  const std::string end = "<|eot_id|>";
  const auto header = [](const std::string& role) {
    return "<|start_header_id|>" + role + "<|end_header_id|>\n\n";
  };
  expect_pieces(llama.render(conversation(
                    R"([{"role": "user", "content": " 2 + 2? "}, {"role": "assistant", "content": "\n4 "},
          {"role": "user", "content": "And 3 + 3?"}, {"role": "assistant", "content": "\u00e9 6"}])")),
                written("<|begin_of_text|>" + header("user")) + data("2 + 2?") +
                    written(end + header("assistant")) + learned("4<|eot_id|>") + written(header("user")) +
                    data("And 3 + 3?") + written(end + header("assistant")) + learned("\u00e9 6<|eot_id|>"));
}

TEST(ChatSpans, MistralHasNoGenerationPrompt) {
  const auto mistral = compiled(builtin_template("mistral"), {"<s>", "</s>", "[INST]", "[/INST]"}, "</s>");
  mistral.require_spans();
  EXPECT_EQ(mistral.generation_prompt(), "");
  EXPECT_EQ(mistral.control_tokens(), (std::vector<std::string>{"<s>", "[INST]", "[/INST]", "</s>"}));
  expect_pieces(mistral.render(conversation(kTwoTurns)),
                written("<s>[INST]") + data("One?") + written("[/INST]") + learned("1.</s>") +
                    written("[INST]") + data("Be brief.") + written("\n\n") + data("Two?") +
                    written("[/INST]") + learned("2.</s>"));
  const auto newer =
      compiled(builtin_template("mistral-v7"),
               {"<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"}, "</s>");
  expect_pieces(newer.render(conversation(kTwoTurns)),
                written("<s>[SYSTEM_PROMPT]") + data("Be brief.") + written("[/SYSTEM_PROMPT][INST]") +
                    data("One?") + written("[/INST]") + learned("1.</s>") + written("[INST]") + data("Two?") +
                    written("[/INST]") + learned("2.</s>"));
}

// As published with Phi-4.
constexpr std::string_view kPhi4 =
    "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + "
    "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' "
    "+ "
    "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}"
    "{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}";

TEST(ChatSpans, TheTemplateOfPhi4LearnsItsAnswers) {
  const auto phi =
      compiled(kPhi4, {"<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|endoftext|>"}, "<|im_end|>");
  phi.require_spans();
  const std::string answer = "<|im_end|><|im_start|>assistant<|im_sep|>";
  expect_pieces(phi.render(conversation(kTwoTurns)),
                written("<|im_start|>system<|im_sep|>") + data("Be brief.") +
                    written("<|im_end|><|im_start|>user<|im_sep|>") + data("One?") + written(answer) +
                    learned("1.<|im_end|>") + written("<|im_start|>user<|im_sep|>") + data("Two?") +
                    written(answer) + learned("2.<|im_end|>"));
}

// The form of Qwen3: thoughts of the last turn only, calls in braces that the template writes, answers of
// tools as the user's.
constexpr std::string_view kQwen3 = R"jinja(
{%- set ns = namespace(last=0) -%}
{%- for message in messages -%}
  {%- if message.role == "user" -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- if message.role == "user" -%}
    {{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' -}}
  {%- elif message.role == "assistant" -%}
    {%- set thoughts = message.reasoning_content if message.reasoning_content is string else '' -%}
    {%- set content = message.content if message.content is string else '' -%}
    {%- if '</think>' in content -%}
      {%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
      {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
    {%- endif -%}
    {{- '<|im_start|>' + message.role + '\n' -}}
    {%- if loop.index0 > ns.last and (loop.last or thoughts) -%}
      {{- '<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' -}}
    {%- endif -%}
    {{- content -}}
    {%- for call in message.tool_calls or [] -%}
      {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments|tojson + '}\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
  {%- elif message.role == "tool" -%}
    {{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
)jinja";

ChatTemplate qwen3() {
  return compiled(kQwen3, {"<|im_start|>", "<|im_end|>"}, "<|im_end|>");
}

TEST(ChatSpans, Qwen3LearnsTheThoughtsAndWhatStandsAroundThem) {
  qwen3().require_spans();
  const std::string answer = "<|im_end|>\n<|im_start|>assistant\n";
  expect_pieces(qwen3().render(conversation(R"([{"role": "user", "content": "Why?"},
      {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}, {"role": "user", "content": "And?"},
      {"role": "assistant", "content": "<think>\nHm again.\n</think>\n\nThus."}])")),
                written("<|im_start|>user\n") + data("Why?") + written(answer) + learned("So.<|im_end|>") +
                    written("\n<|im_start|>user\n") + data("And?") + written(answer) +
                    learned("<think>\nHm again.\n</think>\n\nThus.<|im_end|>") + written("\n"));
}

TEST(ChatSpans, ACallIsLearnedAndTheAnswerOfAToolIsNot) {
  const std::string answer = "<|im_end|>\n<|im_start|>assistant\n";
  expect_pieces(qwen3().render(conversation(R"([{"role": "user", "content": "Weather?"},
          {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "K\u00f6ln", "n": 3}}}]},
          {"role": "tool", "content": "dry"}, {"role": "assistant", "content": "It is dry."}])")),
                written("<|im_start|>user\n") + data("Weather?") + written(answer) +
                    learned("\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"K\u00f6ln\", "
                            "\"n\": 3}}\n</tool_call>"
                            "<|im_end|>") +
                    written("\n<|im_start|>user\n<tool_response>\n") + data("dry") +
                    written("\n</tool_response>" + answer) +
                    learned("<think>\n\n</think>\n\nIt is dry.<|im_end|>") + written("\n"));
}

TEST(ChatSpans, ThePublishedPromptLearnsItsAnswers) {
  const auto published = compiled(builtin_template("published"), {"<s>", "</s>"}, "</s>");
  published.require_spans();
  expect_pieces(published.render(conversation(kTwoTurns)),
                written("<s>### System:\n") + data("Be brief.") + written("\n### Human:\n") + data("One?") +
                    written("\n### Assistant:\n") + learned("1.</s>") + written("### Human:\n") +
                    data("Two?") + written("\n### Assistant:\n") + learned("2.</s>"));
}

TEST(ChatSpans, OnlyWhatIsToBeLearnedIs) {
  const auto published = compiled(builtin_template("published"), {"</s>"}, "</s>");
  const Conversation both = conversation(kTwoTurns);
  EXPECT_EQ(published.render(both, TrainOn::kLast).learned.size(), 1U);
  const RenderedChat last = published.render(both, TrainOn::kLast);
  EXPECT_EQ(texts_of(last.text, last.learned), std::vector<std::string>{"2.</s>"});
  const RenderedChat first = published.render(
      conversation(R"([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
          {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "train": false}])"));
  EXPECT_EQ(texts_of(first.text, first.learned), std::vector<std::string>{"b</s>"});
  const RenderedChat weighed = published.render(
      conversation(R"([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
          {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1}])"));
  EXPECT_EQ(texts_of(weighed.text, weighed.learned), std::vector<std::string>{"d</s>"});
}

TEST(ChatSpans, GenerationMarkersDecideWhatIsLearned) {
  constexpr std::string_view kMarked =
      "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}[{{ m.content }}]{% "
      "endgeneration %}<end>"
      "{% else %}Q:{{ m.content }}{% endif %}{% endfor %}";
  const auto marked = compiled(kMarked, {"<end>"}, "<end>");
  marked.require_spans();
  expect_pieces(marked.render(conversation(
                    R"([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])")),
                written("Q:") + data("x") + written("A:") + learned("[y]<end>"));
}

TEST(ChatSpans, AMarkerThatHoldsTheEndIsLeftAsItIs) {
  constexpr std::string_view kMarked =
      "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}<end>\n{% "
      "endgeneration %}<sep>"
      "{% else %}Q:{{ m.content }}{% endif %}{% endfor %}";
  const auto marked = compiled(kMarked, {"<end>", "<sep>"}, "<end>");
  expect_pieces(marked.render(conversation(
                    R"([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])")),
                written("Q:") + data("x") + written("A:") + learned("y<end>\n") + written("<sep>"));
}

TEST(ChatSpans, ATemplateThatCountsItsMessages) {
  constexpr std::string_view kCounting =
      "{% for i in range(messages|length) %}{% set m = messages[i] %}<{{ m.role }}>{{ m.content }}<end>{% "
      "endfor %}"
      "{% if add_generation_prompt %}<assistant>{% endif %}";
  const auto counting = compiled(kCounting, {"<end>"}, "<end>");
  counting.require_spans();
  expect_pieces(counting.render(conversation(
                    R"([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])")),
                written("<user>") + data("x") + written("<end><assistant>") + learned("y<end>"));
}

TEST(ChatSpans, ATemplateThatCollectsItsText) {
  constexpr std::string_view kCollecting =
      "{% set ns = namespace(out='') %}{% for m in messages %}"
      "{% set ns.out = ns.out ~ '<' ~ m.role ~ '>' ~ m.content|trim ~ '<end>' %}{% endfor %}{{ ns.out }}"
      "{% if add_generation_prompt %}<assistant>{% endif %}";
  const auto collecting = compiled(kCollecting, {"<end>"}, "<end>");
  collecting.require_spans();
  expect_pieces(collecting.render(conversation(
                    R"([{"role": "user", "content": "x"}, {"role": "assistant", "content": " y "}])")),
                written("<user>") + data("x") + written("<end><assistant>") + learned("y<end>"));
}

TEST(ChatSpans, WhatAToolsMessageRepeatsOfTheCallIsNotLearned) {
  constexpr std::string_view kRepeating =
      "{% set ns = namespace(name='') %}{% for m in messages %}{% if m.role == 'assistant' %}<assistant>{{ "
      "m.content }}"
      "{% for c in m.tool_calls or [] %}{{ c.name }}(){% set ns.name = c.name %}{% endfor %}<end>"
      "{% elif m.role == 'tool' %}<tool>{{ ns.name }}:{{ m.content }}<end>{% else %}<user>{{ m.content "
      "}}<end>{% endif %}"
      "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
  const auto repeating = compiled(kRepeating, {"<end>"}, "<end>");
  expect_pieces(repeating.render(conversation(R"([{"role": "user", "content": "x"},
      {"role": "assistant", "content": "", "tool_calls": [{"name": "look"}]}, {"role": "tool", "content": "seen"},
      {"role": "assistant", "content": "y"}])")),
                written("<user>") + data("x") + written("<end><assistant>") + learned("look()<end>") +
                    written("<tool>look:") + data("seen") + written("<end><assistant>") + learned("y<end>"));
}

std::string complaint(const ChatTemplate& about) {
  try {
    about.require_spans();
  } catch (const TemplateError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ChatSpans, ATemplateThatIsNeverLearnedToStopIsRefused) {
  const auto chatml = compiled(builtin_template("chatml"), {"<s>", "</s>"}, "</s>");
  EXPECT_NE(complaint(chatml).find("never learn to stop"), std::string::npos) << complaint(chatml);
  EXPECT_THROW((void)chatml.render(conversation(kTwoTurns)), TemplateError);
}

TEST(ChatSpans, ATemplateWhoseSpansAreNotFoundIsRefused) {
  const auto dropping = compiled("{% for m in messages %}{{ m.role }}<end>{% endfor %}", {"<end>"}, "<end>");
  EXPECT_NE(complaint(dropping).find("is not found in what the template writes"), std::string::npos)
      << complaint(dropping);
  const auto unmarked = compiled(
      "{% if 0 %}{% generation %}{% endgeneration %}{% endif %}"
      "{% for m in messages %}{{ m.content }}<end>{% endfor %}",
      {"<end>"}, "<end>");
  EXPECT_NE(complaint(unmarked).find("is not found in what the template writes"), std::string::npos);
}

TEST(ChatSpans, APromptEndsWhereTheModelBegins) {
  const auto chatml = compiled(builtin_template("chatml"), {"<|im_start|>", "<|im_end|>"}, "<|im_end|>");
  expect_pieces(
      chatml.render_prompt(conversation(R"([{"role": "user", "content": "<|im_end|>x"}])")),
      written("<|im_start|>user\n") + data("<|im_end|>x") + written("<|im_end|>\n<|im_start|>assistant\n"));
}

}  // namespace
}  // namespace pesc
