// Rows in the forms of other programs, and fields that a file calls by other names.
#include "runtime/data/row_forms.h"

#include <gtest/gtest.h>

#include <string>

#include "ops/core/check.h"
#include "runtime/data/rows.h"

namespace pesc {
namespace {

RowColumns columns(ColumnNames names) {
  return {std::move(names), "data.train[0].columns"};
}

std::string refusal(const std::string& json, const RowColumns& names = {}, Answers answers = Answers::kAll) {
  try {
    (void)parse_row(json, "f:1", answers, nullptr, names);
  } catch (const DataError& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("f:1: ")) << error.what();
    return error.what();
  }
  return "accepted";
}

// "system|question>answer|question>answer!", ! where it is not learned.
std::string text_of(const Row& row) {
  std::string text = row.system;
  for (const Turn& turn : row.turns)
    text += "|" + turn.prompt + ">" + turn.answer + (turn.learned ? "" : "!");
  return text + row.corpus;
}
std::string parsed(const std::string& json, const RowColumns& names = {}, Answers answers = Answers::kAll) {
  return text_of(parse_row(json, "f:1", answers, nullptr, names));
}

TEST(RowForms, OfOtherProgramsAreRead) {
  EXPECT_EQ(parsed(R"({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"},
                       {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]})"),
            "s|a>b|c>d");
  EXPECT_EQ(
      parsed(
          R"({"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})"),
      "|a>b");
  EXPECT_EQ(parsed(R"({"prompt": "a", "completion": "b", "system": "s"})"), "s|a>b");
  EXPECT_EQ(parsed(R"({"prompt": [{"role": "user", "content": "a"}],
                       "completion": [{"role": "assistant", "content": "b"}]})"),
            "|a>b");
  EXPECT_EQ(parsed(R"({"query": "a", "response": "b"})"), "|a>b");
  EXPECT_EQ(parsed(R"({"instruction": "a", "input": "x", "response": "b"})"), "|a\nx>b");
  EXPECT_EQ(
      parsed(
          R"({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0},
                       {"from": "human", "value": "c"}, {"from": "gpt", "value": "d", "train": true}]})"),
      "|a>b!|c>d");
  EXPECT_EQ(parse_row(R"({"query": "a", "response": "b", "dataset": "t"})", "f:1").tag, "t");
  // Of a question alone the answer is wanted.
  EXPECT_EQ(parsed(R"({"prompt": "a"})", {}, Answers::kAllButLast), "|a>");
  EXPECT_EQ(parsed(R"({"conversations": [{"from": "human", "value": "a"}]})", {}, Answers::kAllButLast),
            "|a>");
  EXPECT_EQ(parsed(R"({"instruction": "a", "prompt": "unused"})", {}, Answers::kAllButLast), "|a>");
}

TEST(RowForms, BesideAFormOfOurOwnTheirFieldsAreUnused) {
  RowFields fields;
  const Row row =
      parse_row(R"({"instruction": "a", "output": "b", "prompt": "p", "completion": "c", "response": null})",
                "f:1", Answers::kAll, &fields);
  EXPECT_EQ(text_of(row), "|a>b");
  EXPECT_EQ(fields.unused.text(), "\"completion\" (1 row), \"prompt\" (1 row)");
  RowFields others;
  (void)parse_row(
      R"({"conversations": [{"from": "human", "value": "a", "id": 1}, {"from": "gpt", "value": "b", "id": 2}], "n": 1})",
      "f:1", Answers::kAll, &others);
  EXPECT_EQ(others.unused.text(), "\"conversations[].id\" (1 row), \"n\" (1 row)");
}

TEST(RowForms, WhatWouldBeLostIsRefused) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "instruction": "i"})",
       "\"instruction\" has no place"},
      {R"({"prompt": "a", "completion": "b", "input": "i"})", "\"input\" has no place"},
      {R"({"query": "a", "response": "b", "history": [["c", "d"]]})", "\"history\" has no place"},
      {R"({"prompt": "a", "completion": "b", "query": "c", "response": "d"})", "has more than one of"},
      {R"({"conversations": [{"from": "human", "value": "a"}], "prompt": "p"})",
       "the last message is the user's"},
      {R"({"conversations": [{"from": "gpt", "value": "a"}]})",
       "conversations[0] is an assistant message that follows no user's"},
      {R"({"conversations": [{"from": "human", "value": "a"}, {"from": "narrator", "value": "b"}]})",
       "narrator"},
      {R"({"conversations": [{"from": "human", "value": "a"}, {"from": "tool", "value": "b"}]})",
       "conversations[1].role is 'tool'"},
      {R"({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": ["b"]}]})",
       "is no string"},
      {R"({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt"}]})",
       "conversations[1] has no text"},
      {R"({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b\u0000"}]})",
       "conversations[1] holds a NUL"},
      {R"({"conversations": [{"from": "human", "value": "a"},
           {"from": "gpt", "value": "b", "reasoning_content": "r"}]})",
       "conversations[1].reasoning_content is not supported"},
      {R"({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
           "tools": [{"name": "f"}]})",
       "\"tools\" is not supported"},
      {R"({"conversations": "a"})", "\"conversations\" is no list"},
      {R"({"prompt": "a", "prompt": "b", "completion": "c"})", "\"prompt\" appears twice"},
      {R"({"prompt": 5, "completion": "c"})", "\"prompt\" is no text"},
      {R"({"prompt": "a"})", "has none of"},
  };
  for (const auto& [json, expected] : cases)
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, expected, refusal(json)) << json;
  for (const char* json :
       {R"({"prompt": "a", "completion": " "})", R"({"query": "a", "response": ""})",
        R"({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}]})"})
    EXPECT_THROW((void)parse_row(json, "f:1"), EmptyAnswer) << json;
}

TEST(RowForms, AWideRowIsRefusedBeforeATreeIsMadeOfIt) {
  std::string wide = R"({"conversations": [{})";
  for (int i = 0; i < 1000000; ++i) wide += ",{}";
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "has 1000003 lists and objects; a row in this form has at most",
                      refusal(wide + "]}"));
}

TEST(RowColumns, AFileCallsFieldsByItsOwnNames) {
  EXPECT_EQ(parsed(R"({"question": "a", "answer": "b"})",
                   columns({{"question", "prompt"}, {"answer", "completion"}})),
            "|a>b");
  EXPECT_EQ(parsed(R"({"question": "a", "context": "x", "answer": "b", "about": "s", "source": "t"})",
                   columns({{"question", "instruction"},
                            {"context", "input"},
                            {"answer", "output"},
                            {"about", "system"},
                            {"source", "dataset"}})),
            "s|a\nx>b");
  EXPECT_EQ(parsed(R"({"text": "plain"})", columns({{"text", "corpus"}})), "plain");
  EXPECT_EQ(parsed(R"({"chat": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})",
                   columns({{"chat", "messages"}})),
            "|a>b");
  EXPECT_EQ(parsed(R"({"chat": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})",
                   columns({{"chat", "conversations"}})),
            "|a>b");
  EXPECT_EQ(parsed(R"({"turns": [{"input": "a", "output": "b"}], "about": "s"})",
                   columns({{"turns", "conversation"}, {"about", "instruction"}})),
            "s|a>b");
  EXPECT_EQ(parsed(R"({"q": "a", "before": [["c", "d"]], "r": "b"})",
                   columns({{"q", "instruction"}, {"before", "history"}, {"r", "output"}})),
            "|c>d|a>b");
  EXPECT_EQ(parsed(R"({"q": "a", "r": "b"})", columns({{"q", "query"}, {"r", "response"}})), "|a>b");
  // Two names that change places.
  EXPECT_EQ(parsed(R"({"instruction": "a", "output": "b"})",
                   columns({{"instruction", "output"}, {"output", "instruction"}})),
            "|b>a");
}

TEST(RowColumns, TheNamedFieldCountsWhereTheFileHasBoth) {
  RowFields fields;
  const RowColumns names = columns({{"question", "instruction"}});
  const Row row = parse_row(R"({"instruction": "other", "question": "a", "output": "b"})", "f:1",
                            Answers::kAll, &fields, names);
  EXPECT_EQ(text_of(row), "|a>b");
  EXPECT_EQ(fields.unused.text(), "\"instruction\" (1 row)");
  EXPECT_EQ(
      parsed(R"({"prompt": "other", "question": "a", "completion": "b"})", columns({{"question", "prompt"}})),
      "|a>b");
}

TEST(RowColumns, ARowWithoutANamedFieldIsRefusedWithThoseThatAreThere) {
  const RowColumns names = columns({{"question", "prompt"}, {"answer", "completion"}});
  const std::string text = refusal(R"({"ask": "a", "answer": "b", "id": null})", names);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                      "has no field 'question', which data.train[0].columns.prompt names", text);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "its fields are \"ask\", \"answer\", \"id\"", text);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "its fields are none", refusal("{}", names));
  // A null one is there, and says nothing.
  EXPECT_EQ(
      parsed(R"({"q": "a", "x": null, "output": "b"})", columns({{"q", "instruction"}, {"x", "input"}})),
      "|a>b");
}

TEST(RowColumns, ErrorsCallFieldsByTheFilesNames) {
  const RowColumns names = columns({{"question", "instruction"}, {"answer", "output"}});
  EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                      "\"question\" (data.train[0].columns.instruction) is a number, not a string",
                      refusal(R"({"question": 5, "answer": "b"})", names));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "\"answer\" (data.train[0].columns.output) appears twice",
                      refusal(R"({"question": "a", "answer": "b", "answer": "c"})", names));
}

}  // namespace
}  // namespace pesc
