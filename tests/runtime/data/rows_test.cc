#include "runtime/data/rows.h"

#include <gtest/gtest.h>

#include <random>

#include "ops/core/check.h"
#include "runtime/text/utf8.h"

namespace pesc {
namespace {

std::string refusal(const std::string& json) {
  try {
    (void)parse_row(json, "f.jsonl:7");
  } catch (const DataError& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("f.jsonl:7: "));
    EXPECT_EQ(error.code(), ExitCode::kData);
    return error.what();
  }
  return "accepted";
}

TEST(Rows, PublishedFormatKeepsEveryTurn) {
  const Row row = parse_row(
      R"({"instruction": "Be brief.", "conversation": [{"input": "a\nb", "output": "c"}, {"output": "d", "input": ""}],
          "dataset": "orca"})",
      "x");
  EXPECT_EQ(row.tag, "orca");
  EXPECT_EQ(row.system, "Be brief.");
  ASSERT_EQ(row.turns.size(), 2);
  EXPECT_EQ(row.turns[0].prompt, "a\nb");
  EXPECT_EQ(row.turns[0].answer, "c");
  EXPECT_EQ(row.turns[1].prompt, "");
  EXPECT_EQ(row.turns[1].answer, "d");
  EXPECT_EQ(row.corpus, "");
}

TEST(Rows, PublishedFormatWithoutSystemOrTag) {
  for (
      const char* json :
      {R"({"conversation": [{"input": "a", "output": "b"}]})",
       R"({"instruction": "", "conversation": [{"input": "a", "output": "b"}], "corpus": null, "dataset": null})",
       R"({"id": [1, {"instruction": 5}], "conversation": [{"input": "a", "output": "b", "score": {"output": 1}}]})"}) {
    const Row row = parse_row(json, "x");
    EXPECT_EQ(row.system, "") << json;
    EXPECT_EQ(row.tag, "");
    ASSERT_EQ(row.turns.size(), 1);
    EXPECT_EQ(row.turns[0].answer, "b");
  }
}

TEST(Rows, ACorpusIsPlainTextWithoutTurns) {
  const Row row =
      parse_row(R"({"corpus": "Once \u00e9\ud83d\ude00", "dataset": "books", "conversation": null})", "x");
  EXPECT_EQ(row.corpus, "Once \xC3\xA9\xF0\x9F\x98\x80");
  EXPECT_EQ(row.tag, "books");
  EXPECT_TRUE(row.turns.empty());
}

TEST(Rows, AlpacaJoinsInstructionAndInput) {
  Row row = parse_row(R"({"instruction": "Add.", "input": "1 2", "output": "3", "dataset": "math"})", "x");
  ASSERT_EQ(row.turns.size(), 1);
  EXPECT_EQ(row.turns[0].prompt, "Add.\n1 2");
  EXPECT_EQ(row.turns[0].answer, "3");
  EXPECT_EQ(row.system, "");
  EXPECT_EQ(row.tag, "math");
  row = parse_row(R"({"instruction": "Add.", "input": "", "output": "3"})", "x");
  EXPECT_EQ(row.turns[0].prompt, "Add.");
  row = parse_row(R"({"instruction": "Add.", "output": "3"})", "x");
  EXPECT_EQ(row.turns[0].prompt, "Add.");
}

TEST(Rows, MessagesBecomeTurnsAndASystemText) {
  const Row row = parse_row(
      R"({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"},
          {"content": "b", "role": "assistant"}, {"role": "user", "content": "c"},
          {"role": "assistant", "content": "d"}], "dataset": "chat"})",
      "x");
  EXPECT_EQ(row.system, "S");
  EXPECT_EQ(row.tag, "chat");
  ASSERT_EQ(row.turns.size(), 2);
  EXPECT_EQ(row.turns[0].prompt + row.turns[0].answer + row.turns[1].prompt + row.turns[1].answer, "abcd");
}

TEST(Rows, MalformedRowsAreRefusedByName) {
  const auto messages = [](const std::string& list) { return "{\"messages\": [" + list + "]}"; };
  const std::string user = R"({"role": "user", "content": "q"})";
  const std::string assistant = R"({"role": "assistant", "content": "a"})";
  const std::string system = R"({"role": "system", "content": "s"})";
  const std::pair<std::string, const char*> cases[] = {
      {"", "not valid JSON"},
      {"{", "not valid JSON"},
      {"nonsense", "not valid JSON"},
      {R"({"corpus": "a"} x)", "not valid JSON"},
      {R"({"corpus": "a"}{"corpus": "b"})", "not valid JSON"},
      {R"({"corpus": "a",})", "not valid JSON"},
      {"{\"corpus\": \"a\nb\"}", "not valid JSON"},
      {R"({"corpus": "\ud800"})", "not valid JSON"},
      {R"({"corpus": "a", "n": 1e999})", "not valid JSON"},
      {"[]", "is an array, not a JSON object"},
      {"3", "is a number, not a JSON object"},
      {"\"text\"", "is a string, not a JSON object"},
      {"null", "is null, not a JSON object"},
      {"{}", "has none of"},
      {R"({"dataset": "x"})", "has none of"},
      {R"({"instruction": "x"})", "neither \"output\" nor"},
      {R"({"input": "x", "output": "y"})", "no \"instruction\""},
      {R"({"instruction": "x", "output": ""})", "\"output\" is empty"},
      {R"({"instruction": 5, "output": "y"})", "\"instruction\" is a number, not a string"},
      {R"({"instruction": "x", "output": ["y"]})", "\"output\" is an array, not a string"},
      {R"({"instruction": "x", "input": {}, "output": "y"})", "\"input\" is an object, not a string"},
      {R"({"instruction": "x", "output": "y", "dataset": true})", "\"dataset\" is a boolean, not a string"},
      {R"({"instruction": "x", "instruction": "z", "output": "y"})", "\"instruction\" appears twice"},
      {R"({"corpus": ""})", "\"corpus\" is empty"},
      {R"({"corpus": " \n"})", "\"corpus\" is empty"},
      {R"({"corpus": "a\u0000b"})", "\"corpus\" holds a NUL"},
      {R"({"corpus": "a", "conversation": [{"input": "a", "output": "b"}]})", "more than one of"},
      {R"({"corpus": "a", "instruction": "b"})", "no place beside \"corpus\""},
      {R"({"conversation": []})", "has no turn"},
      {R"({"conversation": "a"})", "\"conversation\" is a string, not a list"},
      {R"({"conversation": {"input": "a", "output": "b"}})", "\"conversation\" is an object, not a list"},
      {R"({"conversation": [1]})", "conversation[0] is a number, not an object"},
      {R"({"conversation": [{"input": "a", "output": "b"}, null]})",
       "conversation[1] is null, not an object"},
      {R"({"conversation": [["input"]]})", "conversation[0] is an array, not an object"},
      {R"({"conversation": [{"output": "b"}]})", "conversation[0] has no \"input\""},
      {R"({"conversation": [{"input": "a", "output": "b"}, {"input": "a"}]})",
       "conversation[1] has no \"output\""},
      {R"({"conversation": [{"input": "a", "output": ""}]})", "conversation[0].output is empty"},
      {R"({"conversation": [{"input": "a", "output": null}]})", "conversation[0] has no \"output\""},
      {R"({"conversation": [{"input": {"a": 1}, "output": "b"}]})", "conversation[0].input is an object"},
      {R"({"conversation": [{"input": "a", "input": "a", "output": "b"}]})",
       "conversation[0].input appears twice"},
      {R"({"conversation": [{"input": "a\u0000", "output": "b"}]})", "conversation[0].input holds a NUL"},
      {messages(""), "no user and assistant"},
      {messages(system), "no user and assistant"},
      {messages(user), "the last message is the user's"},
      {messages(assistant), "messages[0] is an assistant message that follows no user's"},
      {messages(user + "," + user + "," + assistant), "messages[1] is a second user message"},
      {messages(user + "," + assistant + "," + assistant), "messages[2] is an assistant message"},
      {messages(user + "," + assistant + "," + user), "the last message is the user's"},
      {messages(user + "," + system + "," + assistant), "messages[1] is a system message"},
      {messages(system + "," + system + "," + user + "," + assistant), "messages[1] is a system message"},
      {messages(R"({"role": "tool", "content": "q"})"), "messages[0].role is 'tool'"},
      {messages(R"({"role": "User", "content": "q"},)" + assistant), "messages[0].role is 'User'"},
      {messages(R"({"role": "user"})"), "messages[0] has no \"content\""},
      {messages(R"({"content": "a"})"), "messages[0] has no \"role\""},
      {messages(R"({"role": "user", "content": [{"type": "text", "text": "a"}]})"),
       "messages[0].content is a list of parts"},
      {messages(user + R"(,{"role": "assistant", "content": ""})"), "messages[1].content is empty"},
  };
  for (const auto& [json, expected] : cases)
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, expected, refusal(json)) << json;
}

TEST(Rows, BadBytesAreRefused) {
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "NUL byte (byte 14",
                      refusal(std::string("{\"corpus\": \"a\0b\"}", 17)));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "NUL byte",
                      refusal(std::string("{\"corpus\": \"a\"}\0 {", 18)));
  for (const char* bad :
       {"\xFF", "\xC3", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82", "\x80"}) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "not valid UTF-8 (byte 13",
                        refusal(std::string("{\"corpus\": \"") + bad + "\"}"));
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "not valid UTF-8",
                        refusal(std::string("{\"other\": \"") + bad + "\", \"corpus\": \"a\"}"));
  }
}

TEST(Rows, MessagesStayShortAndPrintable) {
  std::string json = R"({"messages": [{"role": ")";
  for (int i = 0; i < 10000; ++i) json += "\\u001b";
  json += R"(", "content": "a"}]})";
  const std::string message = refusal(json);
  EXPECT_LT(message.size(), 200U);
  EXPECT_EQ(message.find('\x1b'), std::string::npos);
}

TEST(Rows, NestingBombsAreRefusedEverywhere) {
  for (const std::string& open : {std::string("["), std::string("{\"a\":")}) {
    std::string deep;
    for (int i = 0; i < 1000000; ++i) deep += open;
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "nested deeper",
                        refusal("{\"corpus\": \"a\", \"x\": " + deep));
    EXPECT_NE(refusal(deep), "accepted");
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "nested deeper",
                        refusal("{\"conversation\": [{\"x\": " + deep));
  }
  std::string fine(50, '[');
  fine += std::string(50, ']');
  EXPECT_EQ(refusal("{\"corpus\": \"a\", \"x\": " + fine + "}"), "accepted");
}

TEST(Rows, WideBombsCostNoMemory) {
  std::string wide = "{\"corpus\": \"a\", \"x\": [";
  for (int i = 0; i < 2000000; ++i) wide += "[],";
  EXPECT_EQ(refusal(wide + "[]]}"), "accepted");
  std::string items = "{\"conversation\": [{}";
  for (int i = 0; i < 1000000; ++i) items += ",{}";
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "conversation[0] has no", refusal(items + "]}"));
}

// What the fuzzer looks for, in small: any damage gives a row or a DataError.
TEST(Rows, DamagedRowsNeverGiveAnythingElse) {
  const std::string seeds[] = {
      R"({"instruction": "s", "conversation": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}], "dataset": "t"})",
      R"({"messages": [{"role": "user", "content": "a\u00e9"}, {"role": "assistant", "content": "b"}]})",
      R"({"corpus": "text", "x": [1, 2.5, null, {"y": []}]})"};
  const std::string alphabet = "{}[]\",:\\u0nullt1e \xC3";
  std::mt19937 random(11);
  int accepted = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    std::string json = seeds[random() % 3];
    for (unsigned i = 0; i <= random() % 3; ++i) {
      const size_t at = random() % json.size();
      switch (random() % 3) {
        case 0:
          json[at] = alphabet[random() % alphabet.size()];
          break;
        case 1:
          json.erase(at, 1 + random() % 4);
          break;
        default:
          json.insert(at, 1, alphabet[random() % alphabet.size()]);
      }
      if (json.empty()) json = " ";
    }
    try {
      const Row row = parse_row(json, "x");
      ++accepted;
      EXPECT_NE(row.turns.empty(), row.corpus.empty());
      for (const Turn& turn : row.turns) EXPECT_FALSE(turn.answer.empty());
    } catch (const DataError&) {
    }
  }
  EXPECT_GT(accepted, 100);
  EXPECT_LT(accepted, 19000);
}

TEST(Rows, AnEmptyAnswerIsToldFromAMistake) {
  for (const char* json :
       {R"({"instruction": "x", "output": ""})", R"({"instruction": "x", "output": " \n"})",
        R"({"corpus": ""})",
        R"({"conversation": [{"input": "a", "output": "b"}, {"input": "a", "output": ""}]})",
        R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]})"})
    EXPECT_THROW((void)parse_row(json, "f:1"), EmptyAnswer) << json;
  for (const char* json :
       {R"({"instruction": "x", "output": 5})", R"({"instruction": "x"})", R"({"corpus": )"}) {
    try {
      (void)parse_row(json, "f:1");
      FAIL() << json;
    } catch (const EmptyAnswer&) {
      FAIL() << json;
    } catch (const DataError&) {
    }
  }
}

TEST(Rows, WhatIsOnlyToBeAnsweredNeedsNoLastAnswer) {
  for (const char* json :
       {R"({"conversation": [{"input": "a", "output": "b"}, {"input": "q", "output": ""}]})",
        R"({"conversation": [{"input": "a", "output": "b"}, {"input": "q"}]})",
        R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "q"}]})",
        R"({"instruction": "q", "output": " "})", R"({"instruction": "q"})"}) {
    const Row row = parse_row(json, "f:1", Answers::kAllButLast);
    EXPECT_EQ(row.turns.back().prompt, "q") << json;
    EXPECT_THROW((void)parse_row(json, "f:1"), DataError) << json;
  }
  // The others are part of the prompt.
  for (const char* json :
       {R"({"conversation": [{"input": "a", "output": ""}, {"input": "q"}]})",
        R"({"conversation": [{"input": "a"}, {"input": "q"}]})", R"({"conversation": [{"output": "b"}]})",
        R"({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "q"}]})"}) {
    EXPECT_THROW((void)parse_row(json, "f:1", Answers::kAllButLast), DataError) << json;
  }
}

TEST(Utf8, PrefixEndsAtTheFirstBadByte) {
  EXPECT_EQ(valid_utf8_prefix(""), 0U);
  EXPECT_EQ(valid_utf8_prefix("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z"), 11U);
  EXPECT_EQ(valid_utf8_prefix("ab\xC3"), 2U);
  EXPECT_EQ(valid_utf8_prefix("ab\xF0\x9F\x98"), 2U);
  EXPECT_EQ(valid_utf8_prefix("\xE0\x9F\xBF"), 0U);  // overlong
  EXPECT_EQ(valid_utf8_prefix("\xE0\xA0\x80"), 3U);
  EXPECT_EQ(valid_utf8_prefix("\xED\x9F\xBF"), 3U);
  EXPECT_EQ(valid_utf8_prefix("\xED\xA0\x80"), 0U);      // a surrogate
  EXPECT_EQ(valid_utf8_prefix("\xF0\x8F\xBF\xBF"), 0U);  // overlong
  EXPECT_EQ(valid_utf8_prefix("\xF4\x8F\xBF\xBF"), 4U);
  EXPECT_EQ(valid_utf8_prefix("\xF5\x80\x80\x80"), 0U);
  EXPECT_EQ(valid_utf8_prefix("\xC3("), 0U);
}

}  // namespace
}  // namespace pesc
