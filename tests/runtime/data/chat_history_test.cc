// The prompts of a conversation that goes on are those of training rows; the oldest turns make room.
#include "runtime/data/chat_history.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ops/core/check.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

class ChatHistoryTest : public ::testing::Test {
 protected:
  [[nodiscard]] std::vector<int32_t> prompt(const std::vector<Turn>& turns) const {
    return encode_prompt(bytes_, Row{"", "be brief", turns, ""});
  }
  [[nodiscard]] int64_t size(const std::vector<Turn>& turns) const { return std::ssize(prompt(turns)); }

  ByteTokenizer bytes_;
  RowEncoder encoder_{bytes_};
};

TEST_F(ChatHistoryTest, APromptHasAllTurnsSoFar) {
  ChatHistory history(encoder_, "be brief", {1000, 900});
  EXPECT_EQ(history.ask("a").tokens, prompt({{"a", ""}}));
  history.answer("b");
  EXPECT_EQ(history.ask("c").tokens, prompt({{"a", "b"}, {"c", ""}}));
  history.answer("");  // the model may have nothing to say
  EXPECT_EQ(history.ask("d").tokens, prompt({{"a", "b"}, {"c", ""}, {"d", ""}}));
  history.answer("e");
  history.reset();
  EXPECT_EQ(history.ask("f").tokens, prompt({{"f", ""}}));
}

TEST_F(ChatHistoryTest, TheOldestTurnsMakeRoom) {
  const int64_t of_two = size({{"c", "d"}, {"e", ""}});
  ChatHistory history(encoder_, "be brief", {1000, of_two});
  (void)history.ask("a");
  history.answer("b");
  EXPECT_EQ(history.ask("c").dropped, 0);
  history.answer("d");
  const ChatPrompt third = history.ask("e");
  EXPECT_EQ(third.dropped, 1);
  EXPECT_EQ(third.tokens, prompt({{"c", "d"}, {"e", ""}}));
  history.answer("f");
  // What was dropped is not said again.
  const ChatPrompt fourth = history.ask("g");
  EXPECT_EQ(fourth.dropped, 1);
  EXPECT_EQ(fourth.tokens, prompt({{"e", "f"}, {"g", ""}}));
  history.answer("h");
  // A question alone may be longer than a history.
  const ChatPrompt long_one = history.ask(std::string(200, 'x'));
  EXPECT_EQ(long_one.dropped, 2);
  EXPECT_EQ(long_one.tokens, prompt({{std::string(200, 'x'), ""}}));
}

TEST_F(ChatHistoryTest, AQuestionThatIsTooLongIsRefusedAndChangesNothing) {
  const int64_t most = size({{"a", "b"}, {"c", ""}});
  ChatHistory history(encoder_, "be brief", {most, most});
  (void)history.ask("a");
  history.answer("b");
  try {
    (void)history.ask(std::string(400, 'x'));
    FAIL() << "the question was taken";
  } catch (const DataError& error) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, str_cat("more than ", most), error.what());
  }
  const ChatPrompt next = history.ask("c");
  EXPECT_EQ(next.dropped, 0);
  EXPECT_EQ(next.tokens, prompt({{"a", "b"}, {"c", ""}}));
}

}  // namespace
}  // namespace pesc
