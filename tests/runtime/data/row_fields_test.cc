// Fields of a row beyond the texts: none that changes what is seen or learned is lost without a word.
#include "runtime/data/row_fields.h"

#include <gtest/gtest.h>

#include "ops/core/check.h"
#include "runtime/data/rows.h"

namespace pesc {
namespace {

std::string refusal(const std::string& json, Answers answers = Answers::kAll) {
  try {
    (void)parse_row(json, "f:1", answers);
  } catch (const DataError& error) {
    return error.what();
  }
  return "accepted";
}

std::string unused(const std::string& json) {
  RowFields fields;
  (void)parse_row(json, "f:1", Answers::kAll, &fields);
  return fields.unused.text();
}

TEST(RowFields, HistoryIsTheEarlierTurns) {
  const Row row = parse_row(
      R"({"history": [["a", "b"], ["c", "d"]], "instruction": "e", "input": "f", "output": "g"})", "x");
  ASSERT_EQ(row.turns.size(), 3U);
  EXPECT_EQ(row.turns[0].prompt + row.turns[0].answer + row.turns[1].prompt + row.turns[1].answer, "abcd");
  EXPECT_EQ(row.turns[2].prompt, "e\nf");
  EXPECT_TRUE(row.turns[0].learned);
  for (const char* none : {"[]", "null"}) {
    EXPECT_EQ(parse_row(std::string(R"({"instruction": "e", "output": "g", "history": )") + none + "}", "x")
                  .turns.size(),
              1U);
  }
  const Row asked = parse_row(R"({"instruction": "e", "history": [["a", "b"]]})", "x", Answers::kAllButLast);
  EXPECT_EQ(asked.turns.size(), 2U);
  const auto with = [](const std::string& history) {
    return refusal(R"({"instruction": "e", "output": "g", "history": )" + history + "}");
  };
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "\"history\" is a string, not a list", with("\"a\""));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "history[0] is a string, not a pair", with(R"(["a", "b"])"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "history[0] is an object, not a pair", with(R"([{"a": "b"}])"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "history[1] is no pair", with(R"([["a", "b"], ["c"]])"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "history[0] has more than", with(R"([["a", "b", "c"]])"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "history[0][1] is a number", with(R"([["a", 5]])"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "history[0][0] is null", with(R"([[null, "b"]])"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "history[0][1] is empty", with(R"([["a", ""]])"));
  EXPECT_PRED_FORMAT2(
      ::testing::IsSubstring, "\"history\" has no place beside \"conversation\"",
      refusal(R"({"conversation": [{"input": "a", "output": "b"}], "history": [["a", "b"]]})"));
}

TEST(RowFields, SystemIsTheSystemTextOfAnyFormat) {
  for (
      const char* json :
      {R"({"system": "S", "instruction": "a", "output": "b"})",
       R"({"system": "S", "conversation": [{"input": "a", "output": "b"}]})",
       R"({"system": "S", "instruction": "", "conversation": [{"input": "a", "output": "b"}]})",
       R"({"system": null, "instruction": "S", "conversation": [{"input": "a", "output": "b"}]})",
       R"({"system": "S", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})"})
    EXPECT_EQ(parse_row(json, "x").system, "S") << json;
  EXPECT_PRED_FORMAT2(
      ::testing::IsSubstring, "both give",
      refusal(R"({"system": "S", "instruction": "T", "conversation": [{"input": "a", "output": "b"}]})"));
  EXPECT_PRED_FORMAT2(
      ::testing::IsSubstring, "both give",
      refusal(
          R"({"system": "S", "messages": [{"role": "system", "content": "T"}, {"role": "user", "content": "a"},
              {"role": "assistant", "content": "b"}]})"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "\"system\" has no place beside \"corpus\"",
                      refusal(R"({"system": "S", "corpus": "a"})"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "\"input\" has no place beside \"conversation\"",
                      refusal(R"({"input": "S", "conversation": [{"input": "a", "output": "b"}]})"));
}

TEST(RowFields, AnAnswerOfNoWeightIsShownAndNotLearned) {
  const auto learned = [](const std::string& field) {
    const Row row =
        parse_row(R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", )" + field +
                      R"("content": "b"}, {"role": "user", "content": "c"},
                                    {"role": "assistant", "content": "d"}]})",
                  "x");
    EXPECT_TRUE(row.turns[1].learned);
    return row.turns[0].learned;
  };
  for (const char* no : {R"("weight": 0,)", R"("weight": 0.0,)", R"("train": false,)", R"("train": 0,)",
                         R"("weight": false,)"})
    EXPECT_FALSE(learned(no)) << no;
  for (const char* yes :
       {R"("weight": 1,)", R"("weight": 1.0,)", R"("train": true,)", R"("weight": null,)", ""})
    EXPECT_TRUE(learned(yes)) << yes;
  EXPECT_FALSE(
      parse_row(R"({"conversation": [{"input": "a", "output": "b", "weight": 0}]})", "x").turns[0].learned);
  const auto message = [](const std::string& role, const std::string& field) {
    return refusal(R"({"messages": [{"role": ")" + role + R"(", "content": "a", )" + field +
                   R"(}, {"role": "assistant", "content": "b", "weight": 1}]})");
  };
  EXPECT_EQ(message("user", R"("weight": 0)"), "accepted");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "only answers are", message("user", R"("weight": 1)"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "messages[0].weight is 0.5",
                      message("user", R"("weight": 0.5)"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "messages[0].weight is a string",
                      message("user", R"("weight": "0")"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "contradict", message("user", R"("weight": 0, "train": true)"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "rows have no weight",
                      refusal(R"({"instruction": "a", "output": "b", "weight": 0.5})"));
  EXPECT_EQ(refusal(R"({"instruction": "a", "output": "b", "weight": 1, "train": true})"), "accepted");
}

TEST(RowFields, WhatChangesWhatIsSeenIsRefusedByName) {
  for (const char* field : {"tools", "tool_calls", "function_call", "images", "chosen"}) {
    const auto row = [field](const std::string& value) {
      return refusal(R"({"instruction": "a", "output": "b", ")" + std::string(field) + "\": " + value + "}");
    };
    for (const char* value : {"\"x\"", "[1]", "[[]]", "[{}]", "{\"a\": 1}", "[null]", "5"})
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, "\"" + std::string(field) + "\" is", row(value)) << value;
    for (const char* none : {"null", "[]", "\"\"", "false"})
      EXPECT_EQ(row(none), "accepted") << field << none;
  }
  for (const char* field : {"tool_calls", "function_call", "reasoning_content", "audio"}) {
    const auto row = [field](const std::string& value) {
      return refusal(
          R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", ")" +
          std::string(field) + "\": " + value + "}]}");
    };
    for (const char* value : {"\"x\"", "[{\"function\": {\"name\": \"f\"}}]", "{\"a\": 1}"})
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, "messages[1]." + std::string(field) + " is", row(value))
          << value;
    for (const char* none : {"null", "[]", "\"\""}) EXPECT_EQ(row(none), "accepted") << field << none;
  }
}

TEST(RowFields, OtherDialectsAreToldTheWantedForm) {
  EXPECT_PRED_FORMAT2(
      ::testing::IsSubstring, "has more than one of",
      refusal(
          R"({"instruction": "a", "output": "b", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})"));
  for (const char* list : {"conversation", "messages"}) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "[0].from is of another form",
                        refusal("{\"" + std::string(list) + R"(": [{"from": "human", "value": "a"}]})"));
  }
  EXPECT_PRED_FORMAT2(
      ::testing::IsSubstring, "is a list of parts",
      refusal(R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]})"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "its fields are \"question\", \"answer\"",
                      refusal(R"({"question": "a", "answer": "b", "id": null})"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "columns { instruction: \"question\" output: \"answer\" }",
                      refusal(R"({"question": "a", "answer": "b", "id": null})"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "\"data\" holds a list of objects",
                      refusal(R"({"version": 1, "data": [{"instruction": "a", "output": "b"}]})"));
  EXPECT_EQ(refusal(R"({"data": {"x": {"y": 1}}})").find("holds a list"), std::string::npos);
}

TEST(RowFields, OthersAreCounted) {
  EXPECT_EQ(unused(R"({"instruction": "a", "output": "b", "input": "", "dataset": "t", "system": "s"})"), "");
  EXPECT_EQ(
      unused(R"({"instruction": "a", "inputs": "x", "output": "b", "id": null, "y": {"inputs": [1, {}]}})"),
      "\"inputs\" (1 row), \"y\" (1 row)");
  EXPECT_EQ(
      unused(R"({"conversation": [{"input": "a", "output": "b", "score": 1}, {"input": "a", "output": "b",
                       "score": {"output": 1}, "n": null}]})"),
      "\"conversation[].score\" (1 row)");
  EXPECT_EQ(unused("{\"corpus\": \"a\", \"x\\u001b\": 1}"), "\"x\\x1B\" (1 row)");
  FieldCounts many;
  for (int i = 0; i < 1000; ++i) many.add("f" + std::to_string(i));
  EXPECT_LT(many.text().size(), 1000U);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "and others", many.text());
}

// What is read, but not in every row, is said too.
TEST(RowFields, OptionalOnesAreCounted) {
  pesc::RowFields fields;
  for (
      const char* json :
      {R"({"instruction": "a", "output": "b", "system": "s", "history": [["c", "d"]]})",
       R"({"instruction": "a", "output": "b", "system": "", "history": []})",
       R"({"messages": [{"role": "user", "content": "a", "weight": 0}, {"role": "assistant", "content": "b", "weight": 0},
                         {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": true}]})"})
    (void)parse_row(json, "f:1", Answers::kAll, &fields);
  EXPECT_EQ(
      fields.optional.text(),
      "\"history\" (1 row), \"messages[].train\" (1 row), \"messages[].weight\" (1 row), \"system\" (1 row)");
  EXPECT_TRUE(fields.unused.empty());
}

// A null field is an absent one at every depth, whether the row is learned or answered.
TEST(RowFields, NullIsAbsentAtEveryDepth) {
  for (const char* json :
       {R"({"conversation": [{"input": "a", "output": "b"}, {"input": "q", "output": null}]})",
        R"({"instruction": "q", "output": null})", R"({"instruction": "q", "output": null, "history": null})",
        R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": null}]})",
        R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant"}]})"}) {
    EXPECT_EQ(parse_row(json, "x", Answers::kAllButLast).turns.back().prompt, "q") << json;
    EXPECT_NE(refusal(json), "accepted") << json;
  }
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "conversation[0] has no \"output\"",
                      refusal(R"({"conversation": [{"input": "a", "output": null}]})"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "conversation[0] has no \"input\"",
                      refusal(R"({"conversation": [{"input": null, "output": "b"}]})", Answers::kAllButLast));
  EXPECT_PRED_FORMAT2(
      ::testing::IsSubstring, "messages[0] has no \"role\"",
      refusal(R"({"messages": [{"role": null, "content": "q"}, {"role": "assistant", "content": "a"}]})"));
}

}  // namespace
}  // namespace pesc
