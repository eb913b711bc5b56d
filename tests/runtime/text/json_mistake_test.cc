// What a text that is no JSON is told: what stands at the place, and what to do about it.
#include "runtime/text/json_mistake.h"

#include <gtest/gtest.h>

#include "ops/core/check.h"
#include "runtime/data/rows.h"
#include "runtime/hf/json_file.h"

namespace pesc {
namespace {

std::string refusal(const std::string& json) {
  try {
    (void)parse_row(json, "f:1");
  } catch (const DataError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(JsonMistake, NamesWhatStandsThere) {
  const std::pair<std::string, const char*> cases[] = {
      {"{", "the line ends before its object does"},
      {R"({"data": [)", "one JSON array"},
      {R"({"corpus": "a")", "the line ends before its object does"},
      {R"({"corpus": "abc)", "within the string that begins at byte 12, '\"abc'"},
      {R"({"corpus": "a"},)", "',' (a comma) stands behind the object"},
      {R"({"corpus": "a"} , )", "',' (a comma) stands behind the object"},
      {R"({"corpus": "a"}{"corpus": "b"})", "two objects on one line"},
      {R"({"corpus": "a"} {"corpus": "b"})", "two objects on one line"},
      {"{\"corpus\": \"a\"}\r{\"corpus\": \"b\"}\r", "the lines end with CR alone; convert the file"},
      {R"({"corpus": "a"} text)", "'text' stands behind the object"},
      {R"({"corpus": "a"}})", "'}' stands behind the object"},
      {R"({"corpus": "a", "score": NaN})", "'NaN' is no JSON value"},
      {R"({"corpus": "a", "score": nan})", "'nan' is no JSON value"},
      {R"({"corpus": "a", "score": Infinity})", "'Infinity' is no JSON value"},
      {R"({"corpus": "a", "score": -Infinity})", "'-Infinity' is no JSON value"},
      {R"({"corpus": "a", "score": None})", "'None' is Python's notation"},
      {R"({"corpus": "a", "score": True})", "which gives true"},
      {R"({'corpus': 'a'})", "not in single ones"},
      {R"({"corpus": 'a'})", "not in single ones"},
      {"{\xE2\x80\x9C"
       "corpus\": \"a\"}",
       "typographic quotes"},
      {R"({"corpus": "\ud83d"})", "a lone surrogate, '\\ud83d'"},
      {R"({"corpus": "a\ud83d b"})", "a lone surrogate, '\\ud83d'"},
      {R"({"corpus": "\ude00"})", "a lone surrogate, '\\ude00'"},
      {"{\"corpus\": \"a\nb\"}", "a line break (U+000A) stands bare in a string"},
      {"{\"corpus\": \"a\tb\"}", "a tab (U+0009)"},
      {R"({"corpus": "a\qb"})", "is no escape of JSON"},
      {R"({"corpus": "C:\users"})", "is no escape of JSON"},
      {R"({"corpus": "a",})", "a comma stands before the closing '}'"},
      {R"({"corpus": "a", "x": [1,]})", "a comma stands before the closing ']'"},
      {R"({"corpus": "a", "n": 1e999})", "'1e999' is too large"},
      {R"({corpus: "a"})", "a name stands in double quotes"},
      {R"({"corpus": "a"; "b": 1})", "'; \"b\": 1}' "},
      {R"({"corpus": "a" // text)", "JSON has no comments"},
      {"instruction,output", "the row begins with 'instruction,output'; a row is one JSON object"},
      {"", "there is no text"},
  };
  for (const auto& [json, expected] : cases) {
    const std::string message = refusal(json);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, expected, message) << json;
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "not valid JSON at byte", message) << json;
    EXPECT_LT(message.size(), 400U) << json;
  }
}

// A JSON file of a model: no word of rows, and the text that stands there.
TEST(JsonMistake, SpeaksOfFiles) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "is empty"},
      {" \n", "f.json:2: is not valid JSON at byte 2: there is no text"},
      {"Entry not found", "f.json:1: is not valid JSON at byte 1: the file begins with 'Entry not found'"},
      {"{\n\"a\": NaN}", "f.json:2: is not valid JSON at byte 8: 'NaN' is no JSON value; write null"},
      {R"({"a": True})", "write the file with json.dumps, which gives true"},
      {R"({"a": 1)", "the file ends before its object does; it was cut: copy or download it again"},
      {R"({"a": "b)", "the file ends within the string that begins at byte 7"},
      {R"({"a": 1} {"b": 2})", R"('{"b": 2}' stands behind the object)"},
      {R"({"a": 1,})", "a comma stands before the closing '}'"},
      {"{\"a\": \"\xFF\"}", "is no UTF-8"},
  };
  for (const auto& [json, expected] : cases) {
    std::string message = "accepted";
    try {
      (void)parse_json_document(json, "f.json");
    } catch (const DataError& error) {
      message = error.what();
    }
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, expected, message) << json;
    EXPECT_PRED_FORMAT2(::testing::IsNotSubstring, " row", message) << json;
  }
}

// Whatever stands there: a message, and in time linear in the text.
TEST(JsonMistake, TakesAnyTextAndPosition) {
  const std::string texts[] = {"",  "{",   "\"",       "\\",  "{\"a\\",
                               "}", "{}x", "\xFF\xFE", "NaN", "{\"a\": \"\\u12"};
  for (const std::string& text : texts) {
    for (size_t position = 0; position < text.size() + 3; ++position) {
      for (const char* reason : {"", "surrogate", "expected end of input", "number overflow"})
        EXPECT_FALSE(json_mistake(text, position, reason).empty()) << text << " " << position;
    }
  }
  EXPECT_LT(refusal("{\"corpus\": " + std::string(8 << 20, '[')).size(), 400U);
  EXPECT_LT(refusal("{\"corpus\": \"" + std::string(8 << 20, 'x')).size(), 400U);
}

}  // namespace
}  // namespace pesc
