// tests/end_to_end/tokenizers_test.py compares such files with sentencepiece in the original library.
#include "runtime/tokenizer/exact_tokenizer_json.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ops/core/check.h"
#include "runtime/tokenizer/json_tokenizer.h"

namespace pesc {
namespace {

// The quick start's, of the form of Llama 2.
class ExactTokenizerJson : public ::testing::Test {
 protected:
  const std::string folder_ = std::string(PESC_SOURCE_DIR) + "/configs/quickstart/base";
  const std::unique_ptr<Tokenizer> tokenizer_ = open_tokenizer(folder_);
  const std::string model_ = [this] {
    std::ifstream in(folder_ + "/tokenizer.model", std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  }();

  // What is said of the model with these bytes of its message behind it.
  std::string refusal(std::string_view more) {
    try {
      (void)exact_tokenizer_json(model_ + std::string(more), *tokenizer_, "tokenizer.model");
    } catch (const DataError& error) {
      return error.what();
    }
    return "no error";
  }
};

TEST_F(ExactTokenizerJson, GivesTheSameTokens) {
  const std::string text = exact_tokenizer_json(model_, *tokenizer_, "tokenizer.model");
  EXPECT_EQ(text, exact_tokenizer_json(model_, *tokenizer_, "tokenizer.model"));
  const auto other = parse_json_tokenizer(text, "tokenizer.json", {}, "<s>", "</s>");
  EXPECT_EQ(other->vocab_size(), tokenizer_->vocab_size());
  EXPECT_EQ(other->bos_id(), tokenizer_->bos_id());
  EXPECT_EQ(other->eos_id(), tokenizer_->eos_id());
  EncodeOptions all;
  all.added_tokens = AddedTokens::kAll;
  for (const bool begin : {false, true}) {
    all.post_processor = begin;
    for (const char* t : {"", " ", "   ", "hello", " hello", "  hello  you ", "<s>hello</s> you", "<s> hello",
                          "<unk>", "a\nb\n\n\tc", "\xE2\x96\x81x", "\xF0\x9F\x98\x80 \xE4\xB8\xAD", "<0x41>",
                          "aaaaaaaaaaaaaaaa", "==== ---- ....", "x = (1 + 22) * 333"}) {
      EXPECT_EQ(other->encode_with_ranges(t, all).ids, tokenizer_->encode_with_ranges(t, all).ids)
          << "'" << t << "'";
      EXPECT_EQ(other->encode(t), tokenizer_->encode(t)) << "'" << t << "'";
      EXPECT_EQ(other->decode(other->encode(t)), tokenizer_->decode(tokenizer_->encode(t)));
    }
  }
}

TEST_F(ExactTokenizerJson, OtherModelsAreRefusedByName) {
  using namespace std::string_literals;
  const auto has = [&](const std::string& bytes, const char* said) {
    const std::string why = refusal(bytes);
    EXPECT_NE(why.find(said), std::string::npos) << said << ": " << why;
  };
  has("\x12\x02\x18\x01"s, "Unigram");               // trainer_spec.model_type
  has("\x12\x03\x98\x02\x00"s, "byte_fallback");     // trainer_spec.byte_fallback
  has("\x1A\x03\x12\x01x"s, "rewrites characters");  // normalizer_spec.precompiled_charsmap
  has("\x1A\x02\x20\x01"s, "remove_extra_whitespaces");
  has("\x1A\x02\x18\x00"s, "spaces are marked");  // normalizer_spec.add_dummy_prefix
  has("\x0A\x08\x0A\x04"s + "abcd\x18\x04"s, "'abcd' is found in every text");
  has("\x0A\x08\x0A\x04"s + "abcd\x18\x05"s, "'abcd' is unused");
  has("\x0A\x09\x0A\x02"s + "an\x15\x00\x00\x40\xC0"s, "'an' has the score of another one");  // -3
  has("\x0A\x0A\x0A\x03\xC3\xBF"s + "n\x15\x00\x00\x40\xC0"s, "a character that is no piece");
}

// Runs of one character, of one score: each of n can be cut into two in n - 1 ways.
TEST_F(ExactTokenizerJson, AModelOfLongRunsIsRefused) {
  const auto number = [](size_t n) {  // of two bytes, as protobuf writes it
    return std::string{static_cast<char>(0x80 | (n & 0x7F)), static_cast<char>(n >> 7)};
  };
  std::string runs;
  for (size_t n = 2; n <= 1000; ++n) {
    const std::string piece =
        "\x0A" + number(n) + std::string(n, 'a') + std::string("\x15\x00\x00\x00\xC7", 5);
    runs += "\x0A" + number(piece.size()) + piece;
  }
  const std::string why = refusal(runs);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                      "tokenizer.model: there is no tokenizer.json that does the same: ", why);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "can be put together in more than", why);
}

}  // namespace
}  // namespace pesc
