// The templates that go by a name, written from the published formats. What a format has no place for is
// refused rather than dropped.
#include <array>
#include <string_view>
#include <utility>

#include "runtime/chat/template_source.h"

namespace pesc {
namespace {

// The prompt of the published PESC models: {bos}[### System:\n{system}\n]### Human:\n{input}\n###
// Assistant:\n{output}{eos}
constexpr std::string_view kPublished = R"jinja(
{%- if tools -%}{{- raise_exception("the published prompt has no place for tools") -}}{%- endif -%}
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message.tool_calls or message.reasoning_content -%}
    {{- raise_exception("the published prompt has no place for tool calls and reasoning") -}}
  {%- endif -%}
  {%- if message.role == "system" -%}
    {%- if not loop.first -%}{{- raise_exception("only the first message may be the system's") -}}{%- endif -%}
    {%- if message.content -%}{{- "### System:\n" + message.content + "\n" -}}{%- endif -%}
  {%- elif message.role == "user" -%}
    {{- "### Human:\n" + message.content + "\n" -}}
  {%- elif message.role == "assistant" -%}
    {{- "### Assistant:\n" + message.content + eos_token -}}
  {%- else -%}
    {{- raise_exception("the published prompt has no role '" + message.role + "'") -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "### Assistant:\n" -}}{%- endif -%}
)jinja";

constexpr std::string_view kChatml = R"jinja(
{%- if tools -%}{{- raise_exception("the built-in ChatML has no place for tools; use the model's own template") -}}{%- endif -%}
{%- for message in messages -%}
  {%- if message.tool_calls or message.reasoning_content -%}
    {{- raise_exception("the built-in ChatML has no place for tool calls and reasoning; use the model's own template") -}}
  {%- endif -%}
  {{- "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- endif -%}
)jinja";

constexpr std::string_view kLlama3 = R"jinja(
{%- if tools -%}{{- raise_exception("the built-in Llama 3 has no place for tools; use the model's own template") -}}{%- endif -%}
{{- "<|begin_of_text|>" -}}
{%- for message in messages -%}
  {%- if message.tool_calls or message.reasoning_content -%}
    {{- raise_exception("the built-in Llama 3 has no place for tool calls and reasoning; use the model's own template") -}}
  {%- endif -%}
  {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\n\n" + message.content | trim + "<|eot_id|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" -}}{%- endif -%}
)jinja";

// Version 3, of Nemo: the system's text stands before the last question.
constexpr std::string_view kMistral = R"jinja(
{%- if tools -%}{{- raise_exception("the built-in Mistral has no place for tools; use the model's own template") -}}{%- endif -%}
{%- set ns = namespace(system="", last=-1, user=true) -%}
{%- for message in messages -%}
  {%- if message.role == "user" -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- "<s>" -}}
{%- for message in messages -%}
  {%- if message.tool_calls or message.reasoning_content -%}
    {{- raise_exception("the built-in Mistral has no place for tool calls and reasoning; use the model's own template") -}}
  {%- endif -%}
  {%- if message.role == "system" and loop.first -%}
    {%- set ns.system = message.content -%}
  {%- elif message.role == "user" and ns.user -%}
    {%- set ns.user = false -%}
    {{- "[INST]" -}}
    {%- if loop.index0 == ns.last and ns.system -%}{{- ns.system + "\n\n" -}}{%- endif -%}
    {{- message.content + "[/INST]" -}}
  {%- elif message.role == "assistant" and not ns.user -%}
    {%- set ns.user = true -%}
    {{- message.content + "</s>" -}}
  {%- else -%}
    {{- raise_exception("after the system's message, user and assistant take turns") -}}
  {%- endif -%}
{%- endfor -%}
)jinja";

// From version 7 on (Mistral Small 3): the system's text has tokens of its own.
constexpr std::string_view kMistralV7 = R"jinja(
{%- if tools -%}{{- raise_exception("the built-in Mistral has no place for tools; use the model's own template") -}}{%- endif -%}
{%- set ns = namespace(user=true) -%}
{{- "<s>" -}}
{%- for message in messages -%}
  {%- if message.tool_calls or message.reasoning_content -%}
    {{- raise_exception("the built-in Mistral has no place for tool calls and reasoning; use the model's own template") -}}
  {%- endif -%}
  {%- if message.role == "system" -%}
    {{- "[SYSTEM_PROMPT]" + message.content + "[/SYSTEM_PROMPT]" -}}
  {%- elif message.role == "user" and ns.user -%}
    {%- set ns.user = false -%}
    {{- "[INST]" + message.content + "[/INST]" -}}
  {%- elif message.role == "assistant" and not ns.user -%}
    {%- set ns.user = true -%}
    {{- message.content + "</s>" -}}
  {%- else -%}
    {{- raise_exception("user and assistant take turns") -}}
  {%- endif -%}
{%- endfor -%}
)jinja";

constexpr std::array kTemplates = std::to_array<std::pair<std::string_view, std::string_view>>({
    {"published", kPublished},
    {"chatml", kChatml},
    {"llama3", kLlama3},
    {"mistral", kMistral},
    {"mistral-v7", kMistralV7},
});

}  // namespace

std::string_view builtin_template(std::string_view name) {
  for (const auto& [known, text] : kTemplates) {
    if (known == name) return text;
  }
  return {};
}

}  // namespace pesc
