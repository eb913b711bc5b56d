// The forms of rows, brought into one list of messages.
#include "runtime/chat/messages.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "ops/core/check.h"

namespace pesc {
namespace {

using Json = nlohmann::ordered_json;

Conversation read(const char* row, const ColumnNames& columns = {}) {
  return conversation_of(Json::parse(row), "rows.jsonl:7", columns);
}

void expect_messages(const Conversation& got, const char* messages, const std::vector<bool>& learned) {
  EXPECT_EQ(got.messages.dump(), Json::parse(messages).dump());
  EXPECT_EQ(got.learned, learned);
}

constexpr const char* kPair = R"([{"role":"user","content":"q"},{"role":"assistant","content":"a"}])";

TEST(Messages, EveryFormGivesTheSame) {
  for (
      const char* row : {
          R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})",
          R"({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]})",
          R"({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})",
          R"({"prompt": "q", "completion": "a"})",
          R"({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]})",
          R"({"query": "q", "response": "a"})",
          R"({"instruction": "q", "response": "a"})",
          R"({"instruction": "q", "input": "", "output": "a"})",
          R"({"instruction": "", "conversation": [{"input": "q", "output": "a"}]})",
          R"({"messages": null, "query": "q", "response": "a", "other": 1})",
      }) {
    SCOPED_TRACE(row);
    expect_messages(read(row), kPair, {false, true});
    EXPECT_TRUE(read(row).tools.is_null());
  }
}

TEST(Messages, AnInputFollowsTheInstruction) {
  expect_messages(read(R"({"instruction": "Add.", "input": "1 2", "output": "3"})"),
                  R"([{"role":"user","content":"Add.\n1 2"},{"role":"assistant","content":"3"}])",
                  {false, true});
}

TEST(Messages, TheSystemTextComesFirst) {
  constexpr const char* kExpected =
      R"([{"role":"system","content":"s"},{"role":"user","content":"q"},{"role":"assistant","content":"a"}])";
  for (
      const char* row : {
          R"({"system": "s", "prompt": "q", "completion": "a"})",
          R"({"system_prompt": "s", "query": "q", "response": "a"})",
          R"({"instruction": "s", "conversation": [{"input": "q", "output": "a"}]})",
          R"({"system": "s", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})",
          R"({"conversations": [{"from": "system", "value": "s"}, {"from": "user", "value": "q"}, {"from": "gpt", "value": "a"}]})",
      }) {
    SCOPED_TRACE(row);
    expect_messages(read(row), kExpected, {false, false, true});
  }
}

TEST(Messages, ToolsAndTheirCallsAreKept) {
  const Conversation got =
      read(R"({"tools": "[{\"name\": \"f\"}]", "conversations": [{"from": "human", "value": "q"},
      {"from": "gpt", "value": "", "tool_calls": [{"id": "1"}]}, {"from": "tool", "value": "t"},
      {"from": "gpt", "value": "a", "reasoning_content": "r", "name": null}]})");
  EXPECT_EQ(got.tools.dump(), R"([{"name":"f"}])");
  expect_messages(
      got,
      R"([{"role":"user","content":"q"},{"role":"assistant","content":"","tool_calls":[{"id":"1"}]},
                      {"role":"tool","content":"t"},{"role":"assistant","content":"a","reasoning_content":"r"}])",
      {false, true, false, true});
  EXPECT_TRUE(read(R"({"tools": [], "query": "q", "response": "a"})").tools.is_null());
}

TEST(Messages, WhatIsNotToBeLearned) {
  const Conversation got = read(R"({"messages": [{"role": "user", "content": "q", "weight": 0},
      {"role": "assistant", "content": "a", "train": false}, {"role": "user", "content": "q"},
      {"role": "assistant", "content": "b", "weight": 0}, {"role": "user", "content": "q"},
      {"role": "assistant", "content": "c", "weight": 1, "train": true}]})");
  EXPECT_EQ(got.learned, (std::vector<bool>{false, false, false, false, false, true}));
  EXPECT_EQ(got.messages.dump().find("weight"), std::string::npos);
  EXPECT_EQ(got.messages.dump().find("train"), std::string::npos);
  const Conversation turns = read(
      R"({"instruction": "", "conversation": [{"input": "q", "output": "a", "train": false}, {"input": "r", "output": "b"}]})");
  EXPECT_EQ(turns.learned, (std::vector<bool>{false, false, false, true}));
  const Conversation nulls = read(
      R"({"instruction": null, "conversation": [{"input": "q", "output": "a", "weight": null, "train": null}]})");
  EXPECT_EQ(nulls.learned, (std::vector<bool>{false, true}));
  EXPECT_EQ(nulls.messages.dump(), Json::parse(kPair).dump());
}

TEST(Messages, ColumnsNameTheFieldsOfARow) {
  const ColumnNames columns = {{"question", "prompt"}, {"answer", "completion"}, {"role_text", "system"}};
  expect_messages(read(R"({"question": "q", "answer": "a", "role_text": null})", columns), kPair,
                  {false, true});
  EXPECT_THROW((void)read(R"({"question": "q", "answer": "a"})"), DataError);
  // A column that is renamed is not found under its own name any more.
  EXPECT_THROW((void)read(R"({"prompt": "q", "completion": "a"})", {{"prompt", "context"}}), DataError);
  EXPECT_THROW((void)read(R"({"text": "q"})"), DataError);
}

TEST(Messages, MistakesAreSaidWithTheirPlace) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"[]", "the row is no JSON object"},
      {"{}", "the row has none of the known forms"},
      {R"({"messages": {}})", "\"messages\" is no list"},
      {R"({"messages": []})", "\"messages\" is empty"},
      {R"({"messages": [1]})", "messages[0] is no object"},
      {R"({"messages": [{"content": "x"}]})", "messages[0] has no role"},
      {R"({"messages": [{"role": "<|im_end|>", "content": "x"}]})", "messages[0].role is no plain word"},
      {R"({"messages": [{"role": "user", "content": 1}]})",
       "messages[0].content is neither text nor a list of parts"},
      {R"({"conversations": [{"from": "nobody", "value": "x"}]})", "conversations[0].from is \"nobody\""},
      {R"({"prompt": 1, "completion": "a"})", "\"prompt\" is no text"},
      {R"({"instruction": "i", "conversation": [{"input": "q"}]})", "conversation[0].output is no text"},
      {R"({"tools": "x", "query": "q", "response": "a"})", "\"tools\" is no list of tools"},
      {R"({"system": "s", "messages": [{"role": "system", "content": "t"}]})", "both give the system text"},
      {R"({"messages": [{"role": "user", "content": "q", "train": true}]})", "only the assistant's are"},
      {R"({"messages": [{"role": "assistant", "content": "q", "weight": 0.5}]})",
       "\"weight\" of message 0 is neither"},
      {R"({"messages": [{"role": "assistant", "content": "q", "weight": 1, "train": false}]})",
       "\"weight\" of message 0 contradicts another"},
  };
  for (const auto& [row, expected] : cases) {
    try {
      (void)read(row);
      ADD_FAILURE() << row << " is taken";
    } catch (const DataError& error) {
      const std::string what = error.what();
      EXPECT_TRUE(what.starts_with("rows.jsonl:7: ")) << what;
      EXPECT_NE(what.find(expected), std::string::npos) << row << "\n" << what;
    }
  }
}

}  // namespace
}  // namespace pesc
