// What a tokenizer without byte pieces does not know of a prompt.
#include "runtime/data/unknown_characters.h"

#include <gtest/gtest.h>

#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

constexpr int64_t kLimit = 1000;

TEST(UnknownCharacters, AreNamedOnceWithTheirPlace) {
  const TokenizerFolder folder;
  train_sentencepiece(folder, kDefaultsNoBos);
  const auto tokenizer = open_tokenizer(folder.path());
  Row row;
  row.turns = {{"Hello w\u00F6rld \u2603 and \u2603", ""}};
  EXPECT_EQ(unknown_characters(*tokenizer, row, kLimit),
            "'\u00F6' (character 8 of the prompt), '\u2603' (character 13 of the prompt)");
  row.system = "be \u2603";
  row.turns = {{"Hello", "\u2604"}, {"w\u00F6", "\u2605"}};
  EXPECT_EQ(unknown_characters(*tokenizer, row, kLimit),
            "'\u2603' (character 4 of the system text), '\u2604' (character 1 of answer 1), '\u00F6' "
            "(character 2 of question 2)");
  row = {};
  row.turns = {{"Hello world", ""}};
  EXPECT_EQ(unknown_characters(*tokenizer, row, kLimit), "");
  for (const char* c :
       {"\u2600", "\u2601", "\u2602", "\u2603", "\u2604", "\u2605", "\u2606", "\u2607", "\u2608", "\u2609"})
    row.turns[0].prompt += std::string(" and ") + c;
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, " and 2 more", unknown_characters(*tokenizer, row, kLimit));
}

TEST(UnknownCharacters, BytePiecesKnowAll) {
  const TokenizerFolder folder;
  train_sentencepiece(folder, kLlamaLike);
  const auto tokenizer = open_tokenizer(folder.path());
  Row row;
  row.turns = {{"w\u00F6rld \u2603", ""}};
  EXPECT_EQ(unknown_characters(*tokenizer, row, kLimit), "");
}

}  // namespace
}  // namespace pesc
