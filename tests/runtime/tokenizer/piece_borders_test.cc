// Of a long text only the start is tokenised, and it is the start of the whole.
#include "runtime/tokenizer/piece_borders.h"

#include <gtest/gtest.h>

#include <random>

#include "runtime/data/template.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

// Pieces end with their space mark: no border that is known here.
constexpr const char* kSpacesBehind = "--vocab_size=90 --treat_whitespace_as_suffix";

class LongTexts : public ::testing::TestWithParam<const char*> {
 protected:
  LongTexts() {
    train_sentencepiece(folder_, GetParam());
    tokenizer_ = open_tokenizer(folder_.path());
  }
  TokenizerFolder folder_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

std::string random_text(std::mt19937& random, size_t bytes) {
  const char* const words[] = {"Hello",
                               "the lazy dog",
                               " ",
                               "  ",
                               "\n",
                               "jumps",
                               "\t",
                               "\xE6\x97\xA5",
                               "\xF0\x9F\x98\x80",
                               "aaaa",
                               "answer is 10",
                               "\xC3\xA9",
                               "e\xCC\x81",
                               "\xE3\x80\x80",
                               "###",
                               "<s>",
                               "?"};
  std::string text;
  while (text.size() < bytes)
    text += std::string(words[random() % std::size(words)]) + (random() % 3 ? " " : "");
  return text;
}

TEST_P(LongTexts, TheStartIsThatOfTheWhole) {
  std::mt19937 random(5);
#ifdef __SANITIZE_ADDRESS__
  const int trials = 5;  // each takes ten times as long
#else
  const int trials = 15;
#endif
  for (int trial = 0; trial < trials; ++trial) {
    const std::string text = random_text(random, 20000);
    const std::vector<int32_t> all = tokenizer_->encode(text);
    for (const int64_t limit : {0, 1, 7, 100, 600, 100000}) {
      const EncodedStart start = tokenizer_->encode_start(text, limit);
      if (std::ssize(all) <= limit) {
        EXPECT_EQ(start.ids, all);
        continue;
      }
      ASSERT_GT(std::ssize(start.ids), limit);
      ASSERT_LE(start.ids.size(), all.size());
      EXPECT_TRUE(std::equal(start.ids.begin(), start.ids.end(), all.begin())) << trial << " " << limit;
    }
    if (GetParam() != std::string(kSpacesBehind)) {
      EXPECT_LT(tokenizer_->encode_start(text, 7).bytes, 6000U);
    }
  }
}

TEST_P(LongTexts, RunsWithoutABorderToo) {
  for (const std::string& unit : {std::string("a"), std::string("ab"), std::string("\xE6\x97\xA5")}) {
    std::string text;
    while (text.size() < 150000) text += unit;
    const std::vector<int32_t> all = tokenizer_->encode(text);
    for (const int64_t limit : {1, 500}) {
      const EncodedStart start = tokenizer_->encode_start(text, limit);
      const auto sure = std::min<int64_t>(limit + 1, std::ssize(all));
      ASSERT_GE(std::ssize(start.ids), sure);
      EXPECT_TRUE(std::equal(all.begin(), all.begin() + sure, start.ids.begin())) << unit;
    }
  }
}

// A row of the largest size costs what its first tokens cost.
TEST_P(LongTexts, ALongRowIsCutToTheSameSample) {
  std::mt19937 random(6);
  Row row;
  const std::string text = random_text(random, 60000);
  row.turns = {{"q", text}, {text, "a"}};
  const Sample few = encode_row(*tokenizer_, row, 300);
  const Sample more = encode_row(*tokenizer_, row, 1 << 20);
  EXPECT_TRUE(few.truncated);
  EXPECT_FALSE(more.truncated);
  ASSERT_EQ(few.tokens.size(), 300U);
  EXPECT_TRUE(std::equal(few.tokens.begin(), few.tokens.end(), more.tokens.begin()));
  EXPECT_TRUE(std::equal(few.labels.begin(), few.labels.end() - 1, more.labels.begin()));
  EXPECT_GT(std::ssize(encode_prompt(*tokenizer_, row, 50)), 50);
  EXPECT_LT(std::ssize(encode_prompt(*tokenizer_, row, 50)), 5000);

  // However long the text, so much of it is looked at.
  const std::string long_text = random_text(random, 1 << 20);
  EXPECT_LT(tokenizer_->encode_start(long_text, 300).bytes, size_t{200} << 10);
}
INSTANTIATE_TEST_SUITE_P(Models, LongTexts,
                         ::testing::Values(kLlamaLike, kDefaultsNoBos, "--vocab_size=150 --model_type=bpe",
                                           "--vocab_size=1000 --model_type=char --use_all_vocab",
                                           "--vocab_size=1000 --model_type=word --use_all_vocab",
                                           kSpacesBehind));

}  // namespace
}  // namespace pesc
