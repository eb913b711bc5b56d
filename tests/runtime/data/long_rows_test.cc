#include "runtime/data/long_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/data/dataset.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

Row plain(const std::string& text) {
  Row row;
  row.corpus = text;
  return row;
}
Row chat(size_t answer) {
  Row row;
  row.turns = {{"q", std::string(answer, 'a')}};
  return row;
}

TEST(LongRows, ARowThatFitsIsAsItIs) {
  const ByteTokenizer bytes;
  const Sample sample = encode_row(bytes, chat(3), 200);
  for (const OnLongRow on_long_row : {OnLongRow::kCut, OnLongRow::kDrop}) {
    for (const LongText long_text : {LongText::kAsOtherRows, LongText::kSplit}) {
      const LengthRules exact{std::ssize(sample.tokens), on_long_row, long_text};
      const FittedRow fitted = fit_row(bytes, chat(3), exact);
      ASSERT_EQ(fitted.samples.size(), 1U);
      EXPECT_EQ(fitted.samples[0].tokens, sample.tokens);
      EXPECT_EQ(fitted.samples[0].labels, sample.labels);
      EXPECT_FALSE(fitted.samples[0].truncated || fitted.split);
      EXPECT_EQ(fit_row(bytes, plain("abcd"), {6, on_long_row, long_text}).samples.size(), 1U);
    }
  }
}

TEST(LongRows, AConversationIsCutOrDropped) {
  const ByteTokenizer bytes;
  const int64_t whole = std::ssize(encode_row(bytes, chat(9), 200).tokens);
  for (const LongText long_text : {LongText::kAsOtherRows, LongText::kSplit}) {
    const FittedRow cut = fit_row(bytes, chat(9), {whole - 1, OnLongRow::kCut, long_text});
    ASSERT_EQ(cut.samples.size(), 1U);
    EXPECT_TRUE(cut.samples[0].truncated);
    EXPECT_EQ(std::ssize(cut.samples[0].tokens), whole - 1);
    EXPECT_TRUE(fit_row(bytes, chat(9), {whole - 1, OnLongRow::kDrop, long_text}).samples.empty());
  }
  EXPECT_TRUE(
      fit_row(bytes, plain("abcdefgh"), {9, OnLongRow::kDrop, LongText::kAsOtherRows}).samples.empty());
}

// Three turns: of every length that is too short for all, what is kept ends where an answer and its end-of-text
// token end.
TEST(LongRows, AConversationIsCutBehindItsLastWholeAnswer) {
  const ByteTokenizer bytes;
  for (const bool second_is_learned : {true, false}) {
    Row row;
    row.turns = {{"q", "one"}, {"second", "two!", second_is_learned}, {"r", "three"}};
    const Sample whole = encode_row(bytes, row, 1000);
    std::vector<int64_t> ends, learned;  // tokens up to the end of each learned answer; learned up to there
    int64_t end = 1;                     // begin-of-text
    int64_t sum = 0;
    int64_t first_answer = 0;
    for (const Turn& turn : row.turns) {
      end += std::ssize("### Human:\n" + turn.prompt + "\n### Assistant:\n");
      if (first_answer == 0) first_answer = end;
      end += std::ssize(turn.answer) + 1;
      if (!turn.learned) continue;
      ends.push_back(end);
      learned.push_back(sum += std::ssize(turn.answer) + 1);
    }
    ASSERT_EQ(std::ssize(whole.tokens), end);
    for (int64_t most = 2; most < end; ++most) {
      SCOPED_TRACE(most);
      const FittedRow fitted = fit_row(bytes, row, {most, OnLongRow::kCut});
      ASSERT_EQ(fitted.samples.size(), 1U);
      const Sample& cut = fitted.samples[0];
      const auto fit = std::ranges::upper_bound(ends, most) - ends.begin();
      const int64_t kept = fit == 0 ? most : ends[static_cast<size_t>(fit - 1)];
      ASSERT_EQ(std::ssize(cut.tokens), kept);
      ASSERT_EQ(std::ssize(cut.labels), kept);
      EXPECT_TRUE(std::equal(cut.tokens.begin(), cut.tokens.end(), whole.tokens.begin()));
      EXPECT_TRUE(std::equal(cut.labels.begin(), cut.labels.end() - 1, whole.labels.begin()));
      EXPECT_EQ(cut.labels.back(), kUnsupervised);
      EXPECT_EQ(cut.supervised,
                fit == 0 ? std::max<int64_t>(most - first_answer, 0) : learned[static_cast<size_t>(fit - 1)]);
      EXPECT_TRUE(cut.truncated);
      EXPECT_EQ(fitted.cut_inside, fit == 0 && most >= first_answer);
    }
    EXPECT_FALSE(fit_row(bytes, row, {end, OnLongRow::kCut}).samples[0].truncated);
  }
}

// Put together again, the parts are the text, and each of its tokens but the first is learned exactly once,
// from the token before it.
TEST(LongRows, ASplitTextIsLearnedWholeAndOnce) {
  const ByteTokenizer bytes;
  for (size_t size = 1; size < 60; ++size) {
    std::string text;
    for (size_t i = 0; i < size; ++i) text += static_cast<char>('A' + i);
    const Sample whole = encode_row(bytes, plain(text), 1000);
    for (const int64_t most : {2, 3, 7, 20}) {
      SCOPED_TRACE(str_cat(size, " characters in rows of ", most));
      const FittedRow fitted = fit_row(bytes, plain(text), {most, OnLongRow::kDrop, LongText::kSplit});
      EXPECT_EQ(fitted.split, std::ssize(whole.tokens) > most);
      std::vector<int32_t> tokens{whole.tokens.front()};
      std::vector<int32_t> labels;
      int64_t supervised = 0;
      for (const Sample& part : fitted.samples) {
        ASSERT_GE(part.tokens.size(), 2U);
        EXPECT_LE(std::ssize(part.tokens), most);
        EXPECT_EQ(part.tokens.front(), tokens.back());
        EXPECT_EQ(part.labels.back(), kUnsupervised);
        EXPECT_GE(part.supervised, 1);
        EXPECT_FALSE(part.truncated);
        tokens.insert(tokens.end(), part.tokens.begin() + 1, part.tokens.end());
        labels.insert(labels.end(), part.labels.begin(), part.labels.end() - 1);
        supervised += part.supervised;
      }
      labels.push_back(kUnsupervised);
      EXPECT_EQ(tokens, whole.tokens);
      EXPECT_EQ(labels, whole.labels);
      EXPECT_EQ(supervised, whole.supervised);
    }
  }
}

TEST(LongRows, TheDatasetCountsAndReportsThem) {
  const TokenizerFolder folder;
  const std::string answer(40, 'a');
  const std::string path =
      folder.write("a.jsonl", R"({"corpus": "abc"})"
                              "\n"
                              R"({"instruction": "q", "output": ")" +
                                  answer + "\"}\n" + R"({"corpus": ")" + answer + "\"}\n");
  DatasetOptions options;
  options.max_seq_length = 35;
  options.long_text = LongText::kSplit;
  const Dataset cut({{path, "", 1}}, ByteTokenizer(), options);
  EXPECT_EQ(cut.rows(), 4);
  EXPECT_EQ(cut.epoch_size(), 4);
  EXPECT_EQ(cut.report().truncated, 1);
  EXPECT_EQ(cut.report().split, 1);
  EXPECT_EQ(cut.report().split_rows, 2);
  EXPECT_EQ(cut.longest_row(), 35);
  const std::string text = to_string(cut.report());
  EXPECT_EQ(cut.report().cut_inside, 1);
  EXPECT_PRED_FORMAT2(
      ::testing::IsSubstring,
      "; 1 rows cut to the sequence length, 1 of them within an answer or a text, whose end is "
      "not learned; 1 plain",
      text);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "; 1 plain texts split into 2 rows", text);

  options.on_long_row = OnLongRow::kDrop;
  options.long_text = LongText::kAsOtherRows;
  const Dataset dropped({{path, "", 1}}, ByteTokenizer(), options);
  EXPECT_EQ(dropped.rows(), 1);
  EXPECT_EQ(dropped.report().too_long, 2);
  EXPECT_EQ(dropped.report().truncated + dropped.report().split + dropped.report().dropped, 0);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "; 2 rows dropped, being longer than the sequence length",
                      to_string(dropped.report()));
  ASSERT_EQ(dropped.report().messages.size(), 2U);
  EXPECT_EQ(dropped.report().messages[0],
            path + ":2: the row has more than 35 tokens; dropped (data.on_long_row: DROP)");
}

}  // namespace
}  // namespace pesc
