// Rows of all forms, for a template and for the published prompt; and what of them is refused.
#include "runtime/data/chat_row.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ops/core/check.h"
#include "runtime/chat/messages.h"

namespace pesc {
namespace {

Row read(const std::string& json, RowUse use, Answers answers = Answers::kAll, RowFields* fields = nullptr) {
  return parse_any_row(json, "f:1", answers, use, fields);
}

// "user:hi assistant:yo+", a plus behind what is learned.
std::string written(const Conversation& conversation) {
  std::string out;
  for (size_t i = 0; i < conversation.messages.size(); ++i) {
    const auto& message = conversation.messages[i];
    out += (out.empty() ? "" : " ") + message.at("role").get<std::string>() + ":" +
           message.at("content").get<std::string>() + (conversation.learned[i] ? "+" : "");
  }
  return out;
}

std::string turns(const Row& row) {
  std::string out = row.system.empty() ? "" : "system:" + row.system;
  for (const Turn& turn : row.turns)
    out += (out.empty() ? "" : " ") + turn.prompt + "/" + turn.answer + (turn.learned ? "+" : "");
  return out;
}

std::string refusal(const std::string& json, RowUse use, Answers answers = Answers::kAll) {
  try {
    (void)read(json, use, answers);
  } catch (const DataError& error) {
    return error.what();
  }
  return "no error";
}

// The published prompt's errors have messages[1].label without quotes.
std::string refusal_with_quotes(const std::string& json, RowUse use, const std::string& name) {
  std::string said = refusal(json, use);
  if (const size_t at = said.find("." + name + " "); at != std::string::npos)
    said.replace(at, name.size() + 2, " \"" + name + "\" ");
  return said;
}

struct Form {
  const char* json;
  const char* messages;
  const char* turns;
};

const Form kForms[] = {
    {R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})",
     "system:s user:a assistant:b+", "system:s a/b+"},
    {R"({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"})",
     "system:s user:a assistant:b+", "system:s a/b+"},
    {R"({"prompt": "a", "completion": "b"})", "user:a assistant:b+", "a/b+"},
    {R"({"query": "a", "response": "b"})", "user:a assistant:b+", "a/b+"},
    {R"({"instruction": "a", "response": "b"})", "user:a assistant:b+", "a/b+"},
    {R"({"instruction": "a", "input": "i", "output": "b", "history": [["c", "d"]]})",
     "user:c assistant:d+ user:a\ni assistant:b+", "c/d+ a\ni/b+"},
    {R"({"instruction": "s", "conversation": [{"input": "a", "output": "b", "train": false}, {"input": "c", "output": "d"}]})",
     "system:s user:a assistant:b user:c assistant:d+", "system:s a/b c/d+"},
};

TEST(ChatRow, EveryFormIsReadForBothPrompts) {
  for (const Form& form : kForms) {
    const Row chat = read(form.json, RowUse::kTemplate);
    ASSERT_NE(chat.chat, nullptr) << form.json;
    EXPECT_EQ(written(*chat.chat), form.messages);
    EXPECT_EQ(turns(chat), form.turns);
    const Row published = read(form.json, RowUse::kPublished);
    EXPECT_EQ(published.chat, nullptr);
    EXPECT_EQ(turns(published), form.turns);
    EXPECT_EQ(written(conversation_of_turns(published)), form.messages);
  }
}

TEST(ChatRow, PlainTextIsTheSameForBoth) {
  for (const RowUse use : {RowUse::kTemplate, RowUse::kPublished}) {
    const Row row = read(R"({"corpus": "text", "dataset": "t"})", use);
    EXPECT_EQ(row.corpus, "text");
    EXPECT_EQ(row.tag, "t");
    EXPECT_EQ(row.chat, nullptr);
  }
}

TEST(ChatRow, ToolsAndReasoningReachTheTemplateAlone) {
  const std::string tools =
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"x": 1}]}, )"
      R"({"role": "tool", "content": "t"}, {"role": "assistant", "content": "b", "reasoning_content": "hm"}], "tools": [{"y": 2}]})";
  const Row row = read(tools, RowUse::kTemplate);
  EXPECT_EQ(row.chat->messages[1].at("tool_calls")[0].at("x"), 1);
  EXPECT_EQ(row.chat->messages[3].at("reasoning_content"), "hm");
  EXPECT_EQ(row.chat->tools[0].at("y"), 2);
  EXPECT_EQ(row.chat->learned, (std::vector<bool>{false, true, false, true}));
  EXPECT_NE(refusal(tools, RowUse::kPublished), "no error");
}

TEST(ChatRow, AQuestionMayWaitForItsAnswer) {
  for (const char* json :
       {R"({"prompt": "a"})", R"({"query": "a"})", R"({"instruction": "a"})",
        R"({"messages": [{"role": "user", "content": "a"}]})",
        R"({"conversations": [{"from": "human", "value": "a"}]})", R"({"conversation": [{"input": "a"}]})"}) {
    const Row chat = read(json, RowUse::kTemplate, Answers::kAllButLast);
    EXPECT_EQ(written(*chat.chat).substr(0, 6), "user:a") << json;
    EXPECT_EQ(turns(read(json, RowUse::kPublished, Answers::kAllButLast)).substr(0, 2), "a/") << json;
    EXPECT_NE(refusal(json, RowUse::kTemplate), "no error") << json;
    EXPECT_NE(refusal(json, RowUse::kPublished), "no error") << json;
  }
}

TEST(ChatRow, EmptyAnswersAreToldApart) {
  const std::string empty =
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]})";
  for (const RowUse use : {RowUse::kTemplate, RowUse::kPublished}) {
    EXPECT_THROW((void)read(empty, use), EmptyAnswer);
    EXPECT_THROW((void)read(R"({"prompt": "a", "completion": ""})", use), EmptyAnswer);
  }
}

TEST(ChatRow, WhatNobodyReadsIsRefusedOrCounted) {
  RowFields fields;
  (void)read(R"({"prompt": "a", "completion": "b", "id": 7, "prompt_id": "x", "system": "s"})",
             RowUse::kTemplate, Answers::kAll, &fields);
  EXPECT_EQ(fields.unused.text(), "\"id\" (1 row), \"prompt_id\" (1 row)");
  EXPECT_EQ(fields.optional.text(), "\"system\" (1 row)");
  const auto refused = [](const std::string& more, const char* what) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, what,
                        refusal(R"({"prompt": "a", "completion": "b", )" + more + "}", RowUse::kTemplate));
  };
  refused(R"("images": ["x"])", "\"images\" is not supported");
  refused(R"("weight": 0.5)", "\"weight\" is 0.5; rows have no weight of their own");
  refused(R"("corpus": "c")", "\"corpus\" has no place beside");
  refused(R"("dataset": 3)", "\"dataset\" is not a string");
  refused(R"("prompt": "c")", "the field 'prompt' appears twice");
  refused("\"x\": \"\\u0000\"", "a text holds a NUL character");
  refused("\"x\": " + std::string(100, '[') + std::string(100, ']'), "nested deeper than 64 levels");
  EXPECT_PRED_FORMAT2(
      ::testing::IsSubstring, "message 0: a part of its content is no text",
      refusal(
          R"({"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "b"}]})",
          RowUse::kTemplate));
  EXPECT_PRED_FORMAT2(
      ::testing::IsSubstring, "message 1: \"mask\" is not supported",
      refusal(
          R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "mask": true}]})",
          RowUse::kTemplate));
}

TEST(ChatRow, WhatATurnOfAConversationHasBesideIsOfItsAnswer) {
  const auto turn = [](const std::string& more) {
    return R"({"conversation": [{"input": "a", "output": "b", )" + more + "}]}";
  };
  for (const char* field : {R"("mask": true)", R"("images": ["x.png"])", R"("loss_scale": 0.5)"}) {
    for (const RowUse use : {RowUse::kTemplate, RowUse::kPublished})
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, "is not supported", refusal(turn(field), use)) << field;
  }
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "conversation[0] has \"content\" beside",
                      refusal(turn(R"("content": "c")"), RowUse::kTemplate));
  const Row row =
      read(turn(R"("reasoning_content": "hm", "mood": "gay", "train": false)"), RowUse::kTemplate);
  const auto& answer = row.chat->messages.at(1);
  EXPECT_EQ(answer.at("reasoning_content"), "hm");
  EXPECT_EQ(answer.at("mood"), "gay");
  EXPECT_EQ(answer.at("content"), "b");
  EXPECT_FALSE(row.chat->learned.at(1));
}

// Which one is learned would depend on the prompt.
TEST(ChatRow, RowsOfTwoFormsAreRefused) {
  for (const RowUse use : {RowUse::kTemplate, RowUse::kPublished}) {
    for (
        const char* json :
        {R"({"instruction": "q", "output": "a", "response": "b"})",
         R"({"query": "q", "response": "b", "instruction": "q", "output": "a"})",
         R"({"prompt": "q", "completion": "b", "query": "q", "response": "a"})",
         R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "conversation": [{"input": "a", "output": "b"}]})"})
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, "more than one", refusal(json, use)) << json;
    for (
        const char* json :
        {R"({"prompt": "q", "completion": "b", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})",
         R"({"instruction": "q", "output": "a", "response": ""})",
         R"({"instruction": "q", "output": "a", "response": null})",
         R"({"instruction": "q", "response": "a"})"})
      EXPECT_EQ(refusal(json, use), "no error") << json;
  }
}

TEST(ChatRow, FieldsThatNobodyKnowsCountAlsoWhereTheyAreFalse) {
  RowFields fields;
  (void)read(
      R"({"prompt": "a", "completion": "b", "learn": false, "n": 0, "text": "", "more": [], "input": ""})",
      RowUse::kTemplate, Answers::kAll, &fields);
  EXPECT_EQ(fields.unused.text(), "\"learn\" (1 row), \"n\" (1 row)");
}

// What a chat template would be told beside the messages, and texts of other tasks.
TEST(ChatRow, WhatWouldChangeTheTemplatesTextIsRefusedByName) {
  for (const char* field : {R"("chat_template_kwargs": {"enable_thinking": false})",
                            R"("enable_thinking": true)", R"("enable_thinking": false)",
                            R"("documents": [{"text": "d"}])", R"("suffix": "s")", R"("reasoning": "hm")"}) {
    const std::string name = std::string(field).substr(0, std::string(field).find(':'));
    for (const RowUse use : {RowUse::kTemplate, RowUse::kPublished}) {
      for (const char* row :
           {R"({"prompt": "a", "completion": "b", )", R"({"instruction": "a", "output": "b", )"})
        EXPECT_PRED_FORMAT2(::testing::IsSubstring, name + " is not supported",
                            refusal(row + std::string(field) + "}", use));
    }
  }
  for (const char* none :
       {R"("chat_template_kwargs": {})", R"("enable_thinking": null)", R"("documents": [])"}) {
    EXPECT_EQ(refusal(R"({"prompt": "a", "completion": "b", )" + std::string(none) + "}", RowUse::kTemplate),
              "no error")
        << none;
  }
}

// A mask changes something with one of its two values: "label": false is an answer that is not wanted.
TEST(ChatRow, MasksHaveTheSameMeaningWhereverTheyStand) {
  const auto with_label = [](const std::string& value) {
    return R"({"prompt": "a", "completion": "b", "label": )" + value + "}";
  };
  const auto message = [](const char* form, const std::string& mark) {
    const bool sharegpt = form == std::string("conversations");
    const std::string role = sharegpt ? "from" : "role", content = sharegpt ? "value" : "content";
    return "{\"" + std::string(form) + "\": [{\"" + role + "\": \"user\", \"" + content + "\": \"a\"}, {\"" +
           role + "\": \"assistant\", \"" + content + "\": \"b\", " + mark + "}]}";
  };
  for (const RowUse use : {RowUse::kTemplate, RowUse::kPublished}) {
    for (const char* wanted : {"true", "1", "1.0", "null"})
      EXPECT_EQ(turns(read(with_label(wanted), use)), "a/b+") << wanted;
    for (const char* other : {"false", "0", "0.0", "2", "\"bad\"", "[1]"})
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, "\"label\" is not supported: it says whether",
                          refusal(with_label(other), use))
          << other;
    for (const char* of_row : {"kto_tag", "training", "loss", "loss_weight", "sample_weight"}) {
      const std::string row = R"({"prompt": "a", "completion": "b", ")" + std::string(of_row) + "\": ";
      for (const char* neutral : {"true", "1", "1.0", "null"})
        EXPECT_EQ(turns(read(row + neutral + "}", use)), "a/b+") << of_row << neutral;
      for (const char* other : {"false", "0", "0.5"})
        EXPECT_PRED_FORMAT2(::testing::IsSubstring, "\"" + std::string(of_row) + "\" is not supported",
                            refusal(row + other + "}", use))
            << of_row << other;
    }
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "\"label\" is not supported",
                        refusal(R"({"instruction": "a", "output": "b", "label": false})", use));
    for (const char* form : {"messages", "conversations"}) {
      for (const char* mark : {"weight", "train", "training", "loss"}) {
        const std::string name = "\"" + std::string(mark) + "\": ";
        for (const char* no : {"false", "0"})
          EXPECT_EQ(turns(read(message(form, name + no), use)), "a/b") << form << mark << no;
        for (const char* yes : {"true", "1", "null"})
          EXPECT_EQ(turns(read(message(form, name + yes), use)), "a/b+") << form << mark << yes;
        EXPECT_NE(refusal(message(form, name + "0.5"), use), "no error") << form << mark;
      }
      for (const char* mark : {"mask", "masked", "ignore"}) {
        const std::string name = "\"" + std::string(mark) + "\": ";
        for (const char* neutral : {"false", "0"})
          EXPECT_EQ(turns(read(message(form, name + neutral), use)), "a/b+") << form << mark << neutral;
        for (const char* other : {"true", "1"})
          EXPECT_PRED_FORMAT2(::testing::IsSubstring, "it says what is learned in other words",
                              refusal(message(form, name + other), use))
              << form << mark << other;
      }
      for (const char* mark : {"label", "trainable", "loss_weight", "loss_scale"}) {
        const std::string name = "\"" + std::string(mark) + "\": ";
        for (const char* neutral : {"true", "1"})
          EXPECT_EQ(turns(read(message(form, name + neutral), use)), "a/b+") << form << mark << neutral;
        for (const char* other : {"false", "0", "0.5"})
          EXPECT_PRED_FORMAT2(::testing::IsSubstring, "\"" + std::string(mark) + "\" is not supported",
                              refusal_with_quotes(message(form, name + other), use, mark))
              << form << mark << other;
      }
      EXPECT_PRED_FORMAT2(
          ::testing::IsSubstring, "in other words",
          refusal(message(form, R"("train_detail": [{"begin_offset": 0, "train": false}])"), use));
    }
    const Row published = read(
        R"({"conversation": [{"input": "a", "output": "b", "loss": false}, {"input": "c", "output": "d"}]})",
        use);
    EXPECT_EQ(turns(published), "a/b c/d+");
  }
}

// The forms of published data sets: each is read, or the error says what to do.
TEST(ChatRow, FormsOfDataSetsAreReadOrRefusedByName) {
  struct Case {
    const char* row;
    const char* chat;       // what the error for a template says; empty: the row is read
    const char* published;  // and for the published prompt
  };
  const Case cases[] = {
      // KTO
      {R"({"prompt": "q", "completion": "a", "label": true})", "", ""},
      {R"({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}], "label": 1})",
       "", ""},
      // DPO
      {R"({"prompt": "q", "chosen": "a", "rejected": "b"})", "\"chosen\" is not supported: preferences",
       "\"chosen\" is not supported: preferences"},
      {R"({"chosen": [{"role": "user", "content": "q"}], "rejected": []})",
       "\"chosen\" is not supported: preferences", "\"chosen\" is not supported: preferences"},
      // ShareGPT
      {R"({"id": "1", "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]})",
       "", ""},
      {R"({"conversation": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]})",
       "columns { conversations: \"conversation\" }", "is of another form"},
      {R"({"conversation": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})",
       "columns { messages: \"conversation\" }", "has no \"input\""},
      // Alpaca
      {R"({"instruction": "q", "input": "", "output": "a", "text": "Below is"})", "", ""},
      {R"({"instruction": "q", "input": null, "output": "a"})", "", ""},
      {R"({"instruction": "q", "output": 5})", "\"output\" is no text", "\"output\" is a number"},
      {R"({"instruction": "q", "instances": [{"input": "", "output": "a"}]})",
       "its fields are \"instruction\", \"instances\"", "its fields are \"instruction\", \"instances\""},
      // OpenAI
      {R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}]})",
       "", "write the text of its parts as one string"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, {"role": "assistant", "content": "a"}]})",
       "a part of its content is no text", "write the text of its parts as one string"},
      {R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": {"text": "a"}}]})",
       "message 1: its content is an object; write its text", "messages[1].content is an object"},
      {R"({"messages": [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}]})",
       "(its role is \"gpt\")", "roles are system, user and assistant"},
      // Others
      {R"({"query": "q", "response": "a", "type": "x"})", "", ""},
      {R"({"prompt": "q", "response": "a"})", "its fields are \"prompt\", \"response\"",
       "columns { instruction: \"prompt\" output: \"response\" }"},
      {R"({"question": "q", "answer": "a"})", "columns { instruction: \"question\" output: \"answer\" }",
       "columns { instruction: \"question\" output: \"answer\" }"},
      {R"({"text": "t", "label": 1})", "columns { corpus: \"text\" }", "columns { corpus: \"text\" }"},
      {R"({"text": "t", "label": 0})", "\"label\" is not supported", "\"label\" is not supported"},
  };
  for (const Case& c : cases) {
    const auto expect = [&](RowUse use, const std::string& what) {
      const std::string said = refusal(c.row, use);
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, what.empty() ? "no error" : what, said) << c.row;
    };
    expect(RowUse::kTemplate, c.chat);
    expect(RowUse::kPublished, c.published);
  }
}

TEST(ChatRow, SizesAreBounded) {
  std::string many = R"({"prompt": "a", "completion": "b", "x": [0)";
  for (int i = 0; i < 1 << 20; ++i) many += ",0";
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "more than 1048576 values",
                      refusal(many + "]}", RowUse::kTemplate));
  std::string keys = R"({"prompt": "a", "completion": "b")";
  for (int i = 0; i < 5000; ++i) keys += ",\"k" + std::to_string(i) + "\":0";
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "more than 4096 fields",
                      refusal(keys + "}", RowUse::kTemplate));
}

TEST(ChatRow, DamagedRowsAreRefusedWithTheirPlace) {
  for (const char* json :
       {"{", "[]", "3", "{\"prompt\": \"a\", \"completion\": \"b\"} x", "",
        "{\"prompt\": 3, \"completion\": \"b\"}", "{\"messages\": []}", "{\"conversation\": []}",
        "{\"messages\": [3]}", "{\"messages\": {}}", "{}", "\xFF"}) {
    for (const RowUse use : {RowUse::kTemplate, RowUse::kPublished})
      EXPECT_EQ(refusal(json, use).substr(0, 5), "f:1: ") << json;
  }
}

TEST(ChatRow, AFileMayHaveOtherNames) {
  const RowColumns columns{{{"question", "prompt"}, {"answer", "completion"}}, "data.train[0].columns"};
  const char* json = R"({"question": "a", "answer": "b", "prompt": "another"})";
  const Row row = parse_any_row(json, "f:1", Answers::kAll, RowUse::kTemplate, nullptr, columns);
  EXPECT_EQ(written(*row.chat), "user:a assistant:b+");
  try {
    (void)parse_any_row(R"({"question": "a"})", "f:1", Answers::kAll, RowUse::kTemplate, nullptr, columns);
    FAIL() << "the row was taken";
  } catch (const DataError& error) {
    EXPECT_STREQ(error.what(),
                 "f:1: has no field 'answer', which data.train[0].columns.completion names; its fields are "
                 "\"question\"");
  }
}

}  // namespace
}  // namespace pesc
