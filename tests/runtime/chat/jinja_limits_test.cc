// Templates that are refused: by name for what is not supported, with the line for mistakes, and in bounded
// time and memory for those that run away.
#include <gtest/gtest.h>

#include <ctime>
#include <string>
#include <utility>
#include <vector>

#include "ops/core/check.h"
#include "runtime/chat/chat_template.h"

namespace pesc {
namespace {

using Json = nlohmann::ordered_json;

// What the template is refused with, when it is compiled or when it renders one message.
std::string refusal(const std::string& text, const TemplateLimits& limits = {}, Json extra = Json::object()) {
  TemplateSource source{"folder/chat_template.jinja", text, {}};
  source.tokens.control = {"</s>"};
  TemplateOptions options;
  options.limits = limits;
  options.extra = std::move(extra);
  try {
    const ChatTemplate compiled(std::move(source), std::move(options));
    (void)compiled.render(conversation_of(Json::parse(R"({"prompt": "q", "completion": "a"})"), "row"));
  } catch (const TemplateError& error) {
    return error.what();
  }
  return "no error";
}

void expect_refusals(const std::vector<std::pair<std::string, std::string>>& cases) {
  for (const auto& [text, expected] : cases) {
    EXPECT_EQ(refusal(text), "folder/chat_template.jinja:" + expected) << text;
  }
}

TEST(JinjaLimits, WhatIsNotSupportedIsRefusedByName) {
  expect_refusals({
      {"{% import 'x' as y %}", "1: {% import %} is not supported"},
      {"\n{% from 'x' import y %}", "2: {% from %} is not supported"},
      {"{% include 'x' %}", "1: {% include %} is not supported"},
      {"{% extends 'x' %}", "1: {% extends %} is not supported"},
      {"{% block x %}{% endblock %}", "1: {% block %} is not supported"},
      {"{% with x = 1 %}{% endwith %}", "1: {% with %} is not supported"},
      {"{% do f() %}", "1: {% do %} is not supported"},
      {"{% autoescape true %}{% endautoescape %}", "1: {% autoescape %} is not supported"},
      {"{% for x in y recursive %}{% endfor %}", "1: {% for .. recursive %} is not supported"},
      {"a\nb{% for x in y %}\n{% else %}{% endfor %}", "3: {% else %} of a {% for %} is not supported"},
      {"{{ 1|wordwrap }}", "1: the filter 'wordwrap' is not supported"},
      {"{{ 1 is escaped }}", "1: the test 'escaped' is not supported"},
      {"{{ 1|nope }}", "1: there is no filter 'nope'"},
      {"{{ 1 is nope }}", "1: there is no test 'nope'"},
      {"{{ f(*x) }}", "1: arguments from a list or a mapping (* and **) are not supported"},
      {"{{ '%s' % 1 }}", "1: formatting a string by % is not supported"},
      {"{{ 'a'.zfill(3) }}", "1: the method 'zfill' of a string is not supported"},
      {"{{ [].append(1) }}", "1: 'append' would change a list, which the sandbox of chat templates forbids"},
      {"{{ {}.update({}) }}", "1: 'update' would change a dict, which the sandbox of chat templates forbids"},
      {"{{ cycler('a') }}", "1: lipsum(), cycler() and joiner() are not supported"},
      {"{{ strftime_now('%Y') }}",
       "1: the template asks for today's date (strftime_now), which would make every run another one; set "
       "data.template_date to a date, as \"2025-01-31\""},
      {"{{ \"\\ud83d\" }}", "1: '\\d83d' in a string stands for no character"},
  });
}

TEST(JinjaLimits, MistakesAreSaidWithTheirLine) {
  expect_refusals({
      {"{% if x %}\n\n{{ y }}", "3: the template ends where 'endif' is expected"},
      {"\n{% endif %}", "2: there is no statement 'endif'"},
      {"{{ (1 }}", "1: '}' is not expected here"},
      {"x\n{{ y", "2: a tag that begins here has no end"},
      {"{# x", "1: a comment has no end (\"#}\")"},
      {"{{ 'x }}", "1: a string has no end"},
      {"{{ 1 + }}", "1: '}}' is not expected here"},
      {"{{ \xc3\xa9 }}", "1: the character '\xc3\xa9' is not expected in a tag"},
      {"{% set x = 1 %}\n\n{{ x.y.z }}", "3: 'y' is undefined"},
      {"{{ nope.x }}", "1: 'nope' is undefined"},
      {"{% macro m() %}\n{{ 1 / 0 }}\n{% endmacro %}{{ m() }}", "2: a number is divided by zero"},
      {"{{ raise_exception('Only\nthis') }}", "1: the template refuses the conversation: Only\nthis"},
      {"{{ 9223372036854775807 + 1 }}", "1: a whole number does not fit 64 bits"},
      {"{{ messages[0].content + 1 }}", "1: '+' is not there for a str and a int"},
  });
}

TEST(JinjaLimits, ATemplateThatIsNoUtf8IsRefused) {
  EXPECT_EQ(refusal("ab\xff"), "folder/chat_template.jinja: byte 2 is not UTF-8");
}

void expect_refused_soon(const std::string& text, const std::string& why, Json extra = Json::object()) {
  const TemplateLimits limits = {1'000'000, 400, int64_t{1} << 20, int64_t{64} << 20};
  const std::clock_t start = std::clock();  // of this process: others may have the processors
  const std::string what = refusal(text, limits, std::move(extra));
  EXPECT_NE(what.find(why), std::string::npos) << text.substr(0, 200) << "\n" << what.substr(0, 300);
  EXPECT_LT(std::clock() - start, 20 * CLOCKS_PER_SEC);
}

TEST(JinjaLimits, LoopsAreBounded) {
  const std::string loops =
      "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(9999) %}{% endfor %}{% endfor "
      "%}{% endfor %}";
  expect_refused_soon(loops, "more than 1000000 steps");
  std::string many = "{% for i in range(99999) %}";
  for (int i = 0; i < 9'000; ++i) many += str_cat("{% set n", i, " = i %}");
  expect_refused_soon(many + "{% endfor %}", "more than 1000000 steps");
  expect_refused_soon("{{ range(1000000) }}", "a range has more than 100000 numbers");
  expect_refused_soon("{% set l = range(90000)|list %}{% for x in l %}{{ 'q' if x in l }}{% endfor %}",
                      "steps");
  expect_refused_soon("{% set l = range(90000)|list %}{{ l|map('string')|unique|list|length }}", "steps");
}

TEST(JinjaLimits, RecursionIsBounded) {
  expect_refused_soon("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested more than 400 deep");
  expect_refused_soon("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
                      "nested more than 400 deep");
}

TEST(JinjaLimits, MemoryAndOutputAreBounded) {
  expect_refused_soon("{{ 'x' * 99999999999 }}", "64 MiB of memory");
  expect_refused_soon("{{ [1] * 9223372036854775807 }}", "64 MiB of memory");
  expect_refused_soon(
      "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
      "rendering takes more than");
  expect_refused_soon(
      "{% set ns = namespace(l=[1]) %}{% for i in range(64) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
      "64 MiB of memory");
  // Lists that hold each other twice: what is printed and compared grows as 2^n.
  const std::string doubling =
      "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set "
      "ns.b = [ns.b, ns.b] %}"
      "{% endfor %}";
  expect_refused_soon(doubling + "{{ ns.a == ns.b }}", "steps");
  expect_refused_soon(doubling + "{{ ns.a < ns.b }}", "steps");
  expect_refused_soon(doubling + "{{ ns.a|tojson }}", "steps");
  expect_refused_soon(doubling + "{{ ns.a }}", "steps");
  expect_refused_soon("{% set s = 'x' * 100000 %}{% for i in range(60) %}{{ s }}{% endfor %}",
                      "more than 1 MiB");
  expect_refused_soon("{% set s = 'ab' * 400000 %}{{ s.split('a')|length }}{{ s|list|length }}",
                      "64 MiB of memory");
  expect_refused_soon("{% set s = 'a' * 900000 %}{{ s.replace('', s) }}", "64 MiB of memory");
  expect_refused_soon("{% set s = 'a' * 900000 %}{% for i in range(9999) %}{{ 'b' in s }}{% endfor %}",
                      "steps");
  expect_refused_soon("{{ ('\\n' * 90000)|indent(9999, blank=true) }}", "64 MiB of memory");
  const std::string deep =
      "{% set ns = namespace(a=[]) %}{% for i in range(9999) %}{% set ns.a = [ns.a] %}{% endfor %}";
  expect_refused_soon(deep + "{{ ns.a }}", "nested more than 100 deep");
  expect_refused_soon(deep + "{{ ns.a|tojson }}", "nested more than 100 deep");
}

TEST(JinjaLimits, TheCompilerIsBounded) {
  const auto times = [](const std::string& text, int n) {
    std::string out;
    for (int i = 0; i < n; ++i) out += text;
    return out;
  };
  expect_refused_soon("{{ " + times("(", 100'000) + "1" + times(")", 100'000) + " }}",
                      "nested more than 100 deep");
  expect_refused_soon("{{ " + times("[", 100'000) + times("]", 100'000) + " }}", "nested more than 100 deep");
  expect_refused_soon("{{ " + times("not ", 100'000) + "1 }}", "nested more than 100 deep");
  expect_refused_soon("{{ " + times("-", 100'000) + "1 }}", "nested more than 100 deep");
  expect_refused_soon("{{ 1" + times(" + 1", 100'000) + " }}", "more than 300 operators in a row");
  expect_refused_soon("{{ a" + times(".b", 100'000) + " }}", "more than 300 operators in a row");
  expect_refused_soon("{{ a" + times("|trim", 100'000) + " }}", "more than 300 operators in a row");
  expect_refused_soon("{{ a" + times(" if b", 100'000) + " }}", "more than 300 operators in a row");
  expect_refused_soon("{{ 1" + times(" if 1 else 1", 50'000) + " }}", "nested more than 100 deep");
  expect_refused_soon(times("{% if 1 %}", 10'000), "blocks are nested more than 60 deep");
  expect_refused_soon("{% set " + times("(", 100'000) + times(")", 100'000) + " %}",
                      "nested more than 100 deep");
  expect_refused_soon("{{ " + times("f(", 100'000) + times(")", 100'000) + " }}",
                      "nested more than 100 deep");
  expect_refused_soon("{% if 1 %}" + times("{% elif 1 %}", 10'000),
                      "the template ends where 'endif' is expected");
  std::string names;
  for (int i = 0; i < 20'000; ++i) names += str_cat("{{ n", i, " }}");
  expect_refused_soon(names, "more than 10000 names");
  expect_refused_soon(times("x", (1 << 20) + 1), "the template has more than 1024 KiB");
}

TEST(JinjaLimits, ConversationsAreBoundedToo) {
  std::string json = "1";
  for (int i = 0; i < 200; ++i) json = "[" + json + "]";
  EXPECT_NE(refusal("x", {}, Json{{"v", Json::parse(json)}}).find("nested more than 100 deep"),
            std::string::npos);
  EXPECT_NE(refusal("{{ v }}", {}, Json{{"v", 18446744073709551615U}}).find("does not fit 64 bits"),
            std::string::npos);
  TemplateLimits small;
  small.steps = 100;
  EXPECT_NE(refusal("{% for x in range(200) %}{% endfor %}", small).find("more than 100 steps"),
            std::string::npos);
}

TEST(JinjaLimits, RowAndTemplateAreToldApart) {
  const auto of_row = [](const std::string& text) {
    try {
      const ChatTemplate compiled({"t", text, {}}, {});
      (void)compiled.render(conversation_of(Json::parse(R"({"prompt": "q", "completion": "a"})"), "row"));
    } catch (const TemplateError& error) {
      return error.of_row ? "row" : "template";
    }
    return "no error";
  };
  EXPECT_STREQ(of_row("{{ raise_exception('x') }}"), "row");
  EXPECT_STREQ(of_row("{% include 'x' %}"), "template");
}

}  // namespace
}  // namespace pesc
