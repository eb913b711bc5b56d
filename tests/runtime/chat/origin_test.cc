// Text keeps where it came from, whatever a template does to it. In the expectations «..» is text with an
// origin.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "runtime/chat/conversation_values.h"
#include "runtime/chat/jinja/ast.h"
#include "runtime/chat/jinja/interpreter.h"

namespace pesc {
namespace {

using Json = nlohmann::ordered_json;

std::string annotated(const std::string& source, const Json& of_assistant) {
  const auto program = jinja::parse(source);
  jinja::Heap heap(int64_t{1} << 26, 1'000'000);
  jinja::Interpreter in(*program, heap, {}, "");
  for (const auto& [name, value] : of_assistant.items())
    in.set(name, value_of(heap, value, jinja::origin_of(jinja::kFromAssistant, 3)));
  in.run();
  const jinja::Text& text = in.text();
  std::string out;
  size_t at = 0;
  for (const jinja::Span& span : text.spans) {
    EXPECT_LT(span.begin, span.end);
    EXPECT_LE(at, span.begin);
    EXPECT_EQ(span.origin, jinja::origin_of(jinja::kFromAssistant, 3));
    out += text.bytes.substr(at, span.begin - at) + "«" +
           text.bytes.substr(span.begin, span.end - span.begin) + "»";
    at = span.end;
  }
  return out + text.bytes.substr(at);
}

TEST(Origin, TextKeepsItsOriginThroughEveryOperation) {
  const Json variables = Json::parse(
      R"({"s": " Ab cd ", "u": "\u00e9\u00df", "q": "a\"b\n", "l": ["x", "y"], "d": {"k": "v", "n": 1}, "h": "<b>"})");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"a{{ s }}b", "a« Ab cd »b"},
      {"{{ 'x' + s + 'y' }}", "x« Ab cd »y"},
      {"{{ 'x' ~ s ~ 1 }}", "x« Ab cd »1"},
      {"{{ s|trim }}|{{ s.strip() }}|{{ s.lstrip() }}", "«Ab cd»|«Ab cd»|«Ab cd »"},
      {"{{ ('<' + s + '>').strip('<> ') }}", "«Ab cd»"},
      {"{{ s.split()[1] }},{{ s.split('b')[0] }}", "«cd»,« A»"},
      {"{{ s.split()|join('-') }}", "«Ab»-«cd»"},
      {"{{ s.replace('b', '_') }}", "« A»_« cd »"},
      {"{{ 'x.y'.replace('.', s) }}", "x« Ab cd »y"},
      {"{{ s|replace(' ', '') }}", "«Abcd»"},
      {"{{ s[1:3] }}{{ s[-2] }}", "«Abd»"},
      {"{{ ('1' + s)[:3] }}", "1« A»"},
      {"{{ s[::-1] }}", "« dc bA »"},
      {"{{ s|upper }}{{ ('x' + u)|upper }}", "« AB CD »X«ÉSS»"},
      {"{{ u|title }}{{ s.title() }}{{ s|capitalize }}", "«Éß Ab Cd  ab cd »"},
      {"{{ q|tojson }}", "\"«a\\\"b\\n»\""},
      {"{{ d|tojson }}", "{\"«k»\": \"«v»\", \"«n»\": 1}"},
      {"{{ l }}{{ d|string }}", "['«x»', '«y»']{'«k»': '«v»', '«n»': 1}"},
      {"{{ l|join(', ') }}", "«x», «y»"},
      {"{{ ', '.join(l) }}", "«x», «y»"},
      {"{{ '{}!{}'.format(l[0], 2) }}", "«x»!2"},
      {"{{ ('a\n' + s)|indent(2) }}", "a\n  « Ab cd »"},
      {"{{ l|map('upper')|join }}{{ l|first }}{{ l|last }}", "«XYxy»"},
      {"{{ s * 2 }}", "« Ab cd  Ab cd »"},
      {"{{ l|reverse|join }}{{ s|reverse }}", "«yx dc bA »"},
      {"{{ h|e }}{{ 'a'|safe + h }}", "«&lt;b&gt;»a«&lt;b&gt;»"},
      {"{% set x %}a{{ s|trim }}b{% endset %}{{ x }}", "a«Ab cd»b"},
      {"{% macro m(t) %}[{{ t }}]{% endmacro %}{{ m(s|trim) }}", "[«Ab cd»]"},
      {"{% filter upper %}a{{ l[0] }}{% endfilter %}", "A«X»"},
      {"{% set ns = namespace(o='') %}{% for x in l %}{% set ns.o = ns.o + x + ';' %}{% endfor %}{{ ns.o }}",
       "«x»;«y»;"},
      {"{% for c in l[0] + 'b' %}{{ c }}.{% endfor %}", "«x».b."},
      {"{{ d.k if d.k else 'none' }}{{ d.get('k', 'x') }}{{ d.zz|default(s|trim) }}", "«vvAb cd»"},
      {"{% for k, v in d.items() %}{{ k }}={{ v }} {% endfor %}", "«k»=«v» «n»=1 "},
      {"{{ s|length }}{{ 'A' in s }}{{ s|int }}", "7True0"},
  };
  for (const auto& [source, expected] : cases) EXPECT_EQ(annotated(source, variables), expected) << source;
}

TEST(Origin, MarkersCutASpanInTwo) {
  jinja::Text text("ab");
  text.append("cd", jinja::origin_of(jinja::kFromAssistant, 0));
  text.append("ef");
  text.append("gh", jinja::origin_of(jinja::kFromData, 1));
  text.append("i");
  text.mark(3);
  std::string out;
  for (const jinja::Span& span : text.spans)
    out += text.bytes.substr(span.begin, span.end - span.begin) + "|";
  EXPECT_EQ(out, "c|d|ef|gh|i|");
  EXPECT_EQ(text.origin_at(0), jinja::kOwnText);
  EXPECT_EQ(text.origin_at(2), jinja::kFromAssistant);
  EXPECT_EQ(text.origin_at(3), jinja::kFromAssistant | jinja::kMarked);
  EXPECT_EQ(text.origin_at(4), jinja::kMarked);
  EXPECT_EQ(text.origin_at(8), jinja::kMarked);
}

}  // namespace
}  // namespace pesc
