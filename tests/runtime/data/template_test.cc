#include "runtime/data/template.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "ops/core/check.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

constexpr int64_t kLong = 100000;

// The sample written out with the byte tokenizer: ^ begins, $ ends a text; [x] is a token that carries loss.
std::string written(const Sample& sample) {
  std::string out;
  for (size_t t = 0; t < sample.tokens.size(); ++t) {
    const int32_t id = sample.tokens[t];
    std::string token = id == 1 ? "^" : id == 2 ? "$" : std::string(1, static_cast<char>(id - 3));
    // Position t - 1 predicts token t.
    const bool learned = t > 0 && sample.labels[t - 1] != kUnsupervised;
    if (learned) {
      EXPECT_EQ(sample.labels[t - 1], id);
    }
    out += learned ? "[" + token + "]" : token;
  }
  EXPECT_EQ(sample.labels.back(), kUnsupervised);
  EXPECT_EQ(sample.tokens.size(), sample.labels.size());
  EXPECT_EQ(sample.supervised,
            std::ranges::count_if(sample.labels, [](int32_t label) { return label != kUnsupervised; }));
  return out;
}

Row row_of(std::string system, std::vector<Turn> turns) {
  Row row;
  row.system = std::move(system);
  row.turns = std::move(turns);
  return row;
}

TEST(Template, OneTurnIsWrittenAsPublished) {
  const ByteTokenizer bytes;
  EXPECT_EQ(written(encode_row(bytes, row_of("", {{"hi", "yo"}}), kLong)),
            "^### Human:\nhi\n### Assistant:\n[y][o][$]");
  EXPECT_EQ(written(encode_row(bytes, row_of("be kind", {{"hi", "yo"}}), kLong)),
            "^### System:\nbe kind\n### Human:\nhi\n### Assistant:\n[y][o][$]");
}

TEST(Template, EveryTurnIsTrained) {
  EXPECT_EQ(written(encode_row(ByteTokenizer(), row_of("s", {{"a", "b"}, {"c", "d"}, {"e", "f"}}), kLong)),
            "^### System:\ns\n### Human:\na\n### Assistant:\n[b][$]### Human:\nc\n### Assistant:\n[d][$]"
            "### Human:\ne\n### Assistant:\n[f][$]");
}

TEST(Template, AnAnswerThatIsNotToBeLearnedIsShown) {
  Row row = row_of("", {{"a", "b"}, {"c", "d"}});
  row.turns[0].learned = false;
  EXPECT_EQ(written(encode_row(ByteTokenizer(), row, kLong)),
            "^### Human:\na\n### Assistant:\nb$### Human:\nc\n### Assistant:\n[d][$]");
  row.turns[1].learned = false;
  EXPECT_EQ(encode_row(ByteTokenizer(), row, kLong).supervised, 0);
}

TEST(Template, PlainTextIsLearnedWhole) {
  Row row;
  row.corpus = "abc";
  EXPECT_EQ(written(encode_row(ByteTokenizer(), row, kLong)), "^[a][b][c][$]");
  EXPECT_EQ(written(encode_row(ByteTokenizer(-1, 2), row, kLong)), "a[b][c][$]");
}

TEST(Template, WithoutBeginOfTextNoneIsPut) {
  EXPECT_EQ(written(encode_row(ByteTokenizer(-1, 2), row_of("", {{"hi", "yo"}}), kLong)),
            "### Human:\nhi\n### Assistant:\n[y][o][$]");
  EXPECT_THROW((void)encode_row(ByteTokenizer(1, -1), row_of("", {{"hi", "yo"}}), kLong), DataError);
}

TEST(Template, TruncationKeepsTheStart) {
  const ByteTokenizer bytes;
  const Row row = row_of("", {{"hi", "yo"}});
  const std::string all = written(encode_row(bytes, row, kLong));
  const auto length = std::ssize(encode_row(bytes, row, kLong).tokens);
  EXPECT_FALSE(encode_row(bytes, row, length).truncated);
  EXPECT_EQ(written(encode_row(bytes, row, length)), all);
  Sample cut = encode_row(bytes, row, length - 1);
  EXPECT_TRUE(cut.truncated);
  EXPECT_EQ(written(cut), "^### Human:\nhi\n### Assistant:\n[y][o]");
  cut = encode_row(bytes, row, length - 2);
  EXPECT_EQ(cut.supervised, 1);
  cut = encode_row(bytes, row, length - 3);
  EXPECT_EQ(cut.supervised, 0);
  EXPECT_EQ(std::ssize(cut.tokens), length - 3);
  EXPECT_EQ(encode_row(bytes, row, 1).supervised, 0);
}

TEST(Template, PromptIsTheSampleUpToTheLastAnswer) {
  const ByteTokenizer bytes;
  Row row = row_of("s", {{"a", "b"}, {"c", "dd"}});
  const std::vector<int32_t> prompt = encode_prompt(bytes, row);
  const Sample sample = encode_row(bytes, row, kLong);
  ASSERT_EQ(prompt.size() + 3, sample.tokens.size());
  EXPECT_TRUE(std::equal(prompt.begin(), prompt.end(), sample.tokens.begin()));
  row.turns.back().answer.clear();
  EXPECT_EQ(encode_prompt(bytes, row), prompt);
  Row text;
  text.corpus = "ab";
  EXPECT_EQ(encode_prompt(bytes, text), (std::vector<int32_t>{1, 'a' + 3, 'b' + 3}));
}

class TemplateWithSentencePiece : public ::testing::TestWithParam<const char*> {};

// The boundary: whatever the texts at it, training sees exactly the tokens that generation starts from, and
// the learned tokens are the answer's own.
TEST_P(TemplateWithSentencePiece, BoundaryIsTheSameInTrainingAndGeneration) {
  const TokenizerFolder folder;
  train_sentencepiece(folder, GetParam());
  const auto tokenizer = open_tokenizer(folder.path());
  const char* const texts[] = {"the answer is 10", " 42", "\n", "x", "<s>", "</s>", "\xE6\x97\xA5",
                               "  the lazy dog  ", "?"};
  const int32_t bos = tokenizer->bos_id();
  const int32_t eos = tokenizer->eos_id();
  for (const char* system : {"", "<s>be brief"}) {
    for (const char* first : texts) {
      for (const char* second : texts) {
        const Row row = row_of(system, {{first, second}, {second, first}, {"last", second}});
        const Sample sample = encode_row(*tokenizer, row, kLong);
        const std::vector<int32_t> prompt = encode_prompt(*tokenizer, row);
        const std::vector<int32_t> answer = tokenizer->encode(second);
        std::vector<int32_t> joined = prompt;
        joined.insert(joined.end(), answer.begin(), answer.end());
        joined.push_back(eos);
        ASSERT_EQ(sample.tokens, joined);

        // What is learned is the answers and their ends, in order.
        std::vector<int32_t> learned;
        for (const int32_t label : sample.labels) {
          if (label != kUnsupervised) learned.push_back(label);
        }
        std::vector<int32_t> expected;
        for (const Turn& turn : row.turns) {
          const auto ids = tokenizer->encode(turn.answer);
          expected.insert(expected.end(), ids.begin(), ids.end());
          expected.push_back(eos);
        }
        EXPECT_EQ(learned, expected);
        EXPECT_EQ(std::ranges::count(sample.tokens, bos), bos >= 0 ? 1 : 0);
        EXPECT_EQ(std::ranges::count(sample.tokens, eos), 3);
        if (bos >= 0) {
          EXPECT_EQ(sample.tokens.front(), bos);
        }
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Models, TemplateWithSentencePiece, ::testing::Values(kLlamaLike, kDefaultsNoBos));

}  // namespace
}  // namespace pesc
