// Begin and end of a text, from all files that speak of them.
#include "runtime/data/special_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ops/core/check.h"
#include "runtime/data/template.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

ModelConfig model_of(int64_t vocab, int64_t bos, std::vector<int64_t> eos) {
  ModelConfig model;
  model.vocab_size = vocab;
  model.bos_id = bos;
  model.eos_ids = std::move(eos);
  return model;
}

class SpecialTokenTest : public ::testing::Test {
 protected:
  SpecialTokens agree(const ModelConfig& model, const Tokenizer& tokenizer = ByteTokenizer()) {
    return agree_on_special_tokens(read_special_tokens(model, folder_.path(), folder_.path()), tokenizer,
                                   model);
  }
  std::string refusal(const ModelConfig& model, const Tokenizer& tokenizer = ByteTokenizer()) {
    try {
      (void)agree(model, tokenizer);
    } catch (const DataError& error) {
      return error.what();
    }
    return "accepted";
  }
  TokenizerFolder folder_;
};

using Ids = std::vector<int64_t>;
using nlohmann::json;

TEST_F(SpecialTokenTest, StopsAreThoseOfAllFiles) {
  EXPECT_EQ(agree(model_of(300, 1, {})).stops, (Ids{2}));
  EXPECT_EQ(agree(model_of(300, 1, {7, 2})).stops, (Ids{2, 7}));
  folder_.write("generation_config.json",
                R"({"eos_token_id": [9, 280], "bos_token_id": null, "pad_token_id": -1})");
  const SpecialTokens all = agree(model_of(300, 1, {7, 2}));
  EXPECT_EQ(all.stops, (Ids{2, 7, 9, 280}));
  EXPECT_EQ(all.begin, 1);
  EXPECT_EQ(all.end, 2);
  folder_.write("generation_config.json", R"({"eos_token_id": 2})");
  EXPECT_EQ(agree(model_of(300, 1, {7})).stops, (Ids{2, 7}));  // one of the files has the learned one
  EXPECT_EQ(agree(model_of(300, 5, {2}), ByteTokenizer(-1, 2)).begin, -1);
}

TEST_F(SpecialTokenTest, AnEndThatStopsNothingIsRefused) {
  const std::string message = refusal(model_of(300, 1, {7}));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "learned with token 2", message);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "7 (eos_token_id of " + folder_.path() + "/config.json)",
                      message);
  folder_.write("generation_config.json", R"({"eos_token_id": [8]})");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "generation_config.json", refusal(model_of(300, 1, {})));
  EXPECT_EQ(refusal(model_of(300, 1, {2})), "accepted");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "bos_token_id", refusal(model_of(300, 0, {2})));
}

TEST_F(SpecialTokenTest, IdsOutsideTheVocabularyAreRefusedWithFileAndValue) {
  for (const char* value : {"300", "[2, 300]", "-1", "2.5", "\"2\"", "true", "{}"}) {
    const std::string path =
        folder_.write("generation_config.json", std::string(R"({"eos_token_id": )") + value + "}");
    const std::string message = refusal(model_of(300, 1, {2}));
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, path + ": eos_token_id is ", message) << value;
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "0 to 299", message) << value;
  }
  folder_.write("generation_config.json", R"({"bos_token_id": 300})");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "bos_token_id is 300", refusal(model_of(300, 1, {2})));
  folder_.write("generation_config.json", "{");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "generation_config.json", refusal(model_of(300, 1, {2})));
  folder_.write("generation_config.json", "{}");
  folder_.write("tokenizer_config.json",
                R"({"eos_token": "<|end|>", "added_tokens_decoder": {"300": {"content": "<|end|>"}}})");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "the id 300", refusal(model_of(300, 1, {2})));
}

TEST_F(SpecialTokenTest, TokenizerFilesNameThemByText) {
  folder_.write("tokenizer_config.json",
                R"({"eos_token": {"content": "<|end|>"}, "pad_token": null,
                    "added_tokens_decoder": {"270": {"content": "<|end|>", "special": true}}})");
  EXPECT_EQ(agree(model_of(300, 1, {2})).stops, (Ids{2, 270}));
  folder_.write("special_tokens_map.json", R"({"eos_token": "<|other|>"})");
  const SpecialTokens tokens = agree(model_of(300, 1, {2}));
  EXPECT_EQ(tokens.stops, (Ids{2, 270}));
  ASSERT_EQ(tokens.warnings.size(), 1U);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "'<|other|>', which the tokenizer has no piece for",
                      tokens.warnings[0]);
  folder_.write("special_tokens_map.json", R"({"eos_token": 5})");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "special_tokens_map.json: eos_token is neither",
                      refusal(model_of(300, 1, {2})));
}

// Ids are looked up in all files together: a text that one of them gives an id to is no stranger in the
// other.
TEST_F(SpecialTokenTest, OneTextIsOneTokenInAllFiles) {
  const std::string config = folder_.write(
      "tokenizer_config.json",
      R"({"eos_token": "<|end|>", "added_tokens_decoder": {"270": {"content": "<|end|>", "special": true}}})");
  const std::string map =
      folder_.write("special_tokens_map.json", R"({"eos_token": {"content": "<|end|>"}})");
  SpecialTokens tokens = agree(model_of(300, 1, {2}));
  EXPECT_EQ(tokens.stops, (Ids{2, 270}));
  ASSERT_EQ(tokens.warnings.size(), 1U);
  EXPECT_EQ(
      tokens.warnings[0],
      "the files do not agree on the token that ends an answer: tokenizer.model has token 2; eos_token of " +
          config + " is token 270 ('<|end|>'); eos_token of " + map +
          " is token 270 ('<|end|>'). Answers are learned with token 2 at their end, and generation stops at "
          "token "
          "2, 270");
  const std::string added = folder_.write("added_tokens.json", R"({"<|end|>": 271, "<|pad|>": 272})");
  tokens = agree(model_of(300, 1, {2}));
  EXPECT_EQ(tokens.stops, (Ids{2, 270}));
  ASSERT_EQ(tokens.warnings.size(), 2U);
  EXPECT_EQ(tokens.warnings[0], "the files do not agree on the id of '<|end|>': " + config +
                                    " has token 270; " + added + " has token 271. Token 270 is taken");
  folder_.write("tokenizer_config.json", "{}");
  EXPECT_EQ(agree(model_of(300, 1, {2})).stops, (Ids{2, 271}));
}

TEST_F(SpecialTokenTest, FilesThatNameOtherBeginsAreSaidOnce) {
  const std::string config = folder_.write("tokenizer_config.json", R"({"bos_token": "<|begin|>"})");
  const std::string generation = folder_.write("generation_config.json", R"({"bos_token_id": 5})");
  const SpecialTokens tokens = agree(model_of(300, 1, {2}));
  ASSERT_EQ(tokens.warnings.size(), 1U);
  EXPECT_EQ(tokens.warnings[0],
            "the files do not agree on the token that begins a text: tokenizer.model has token 1; "
            "bos_token_id of " +
                generation + " is token 5; bos_token of " + config +
                " is '<|begin|>', which the tokenizer has no piece for. Texts begin with token 1");
  EXPECT_EQ(tokens.begin, 1);
}

TEST_F(SpecialTokenTest, FilesThatNameOtherEndsAreSaidThoughOneHasTheLearnedOne) {
  folder_.write("generation_config.json", R"({"eos_token_id": [2, 281]})");
  EXPECT_TRUE(agree(model_of(300, 1, {280, 2})).warnings.empty());
  const SpecialTokens tokens = agree(model_of(300, 1, {280}));
  ASSERT_EQ(tokens.warnings.size(), 1U);
  EXPECT_PRED_FORMAT2(
      ::testing::IsSubstring,
      "tokenizer.model has token 2; eos_token_id of " + folder_.path() + "/config.json is token 280. Answers",
      tokens.warnings[0]);
}

TEST_F(SpecialTokenTest, PaddingIsComparedAndCountsNowhere) {
  folder_.write("tokenizer_config.json", R"({"pad_token": "<|pad|>"})");
  folder_.write("added_tokens.json", R"({"<|pad|>": 272})");
  ModelConfig model = model_of(300, 1, {2});
  EXPECT_TRUE(agree(model).warnings.empty());
  model.pad_id = 272;
  EXPECT_TRUE(agree(model).warnings.empty());
  model.pad_id = 0;
  const SpecialTokens tokens = agree(model);
  ASSERT_EQ(tokens.warnings.size(), 1U);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "config.json is token 0; pad_token of ", tokens.warnings[0]);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "is token 272 ('<|pad|>'). None of them counts",
                      tokens.warnings[0]);
  EXPECT_EQ(tokens.stops, (Ids{2}));
}

TEST_F(SpecialTokenTest, IdsOfAddedTokensOutsideTheVocabularyAreRefusedInEveryRole) {
  for (const char* key : {"bos_token", "eos_token", "pad_token"}) {
    folder_.write("special_tokens_map.json", str_cat(R"({")", key, R"(": "<|x|>"})"));
    for (const char* value : {"300", "-1", "2.5", "\"7\"", "99999999999"}) {
      const std::string added = folder_.write("added_tokens.json", str_cat(R"({"<|x|>": )", value, "}"));
      const std::string message = refusal(model_of(300, 1, {2}));
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, added + ": gives " + key + " <|x|> of ", message) << value;
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, "from 0 to 299", message) << value;
    }
  }
  folder_.write("special_tokens_map.json", "{}");
  EXPECT_EQ(refusal(model_of(300, 1, {2})), "accepted");  // nobody uses it
  folder_.write("generation_config.json", R"({"pad_token_id": 300})");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "generation_config.json: pad_token_id is 300",
                      refusal(model_of(300, 1, {2})));
}

// The template puts begin and end as the recipe does; a file that says otherwise is named with what is done.
TEST_F(SpecialTokenTest, WhatATokenizerWouldAddByItselfChangesNothingAndIsSaid) {
  const auto told = [&](const std::string& text, const Tokenizer& tokenizer = ByteTokenizer()) {
    folder_.write("tokenizer_config.json", text);
    return agree(model_of(300, -1, {2}), tokenizer);
  };
  const std::string file = folder_ / "tokenizer_config.json";
  SpecialTokens tokens = told(R"({"add_bos_token": false, "add_eos_token": true})");
  ASSERT_EQ(tokens.warnings.size(), 2U);
  EXPECT_EQ(tokens.warnings[0],
            file +
                ": add_bos_token is false; token 1 is put in front of every text nevertheless, "
                "as the published recipe does");
  EXPECT_EQ(tokens.warnings[1],
            file +
                ": add_eos_token is true; token 2 is put behind every answer, and behind no "
                "question, as the published recipe does");
  EXPECT_EQ(tokens.begin, 1);
  EXPECT_EQ(tokens.end, 2);
  tokens = told(R"({"add_bos_token": true, "add_eos_token": false})");
  EXPECT_TRUE(tokens.warnings.empty());
  ASSERT_EQ(tokens.notes.size(), 1U);
  EXPECT_EQ(tokens.notes[0],
            file +
                ": add_eos_token is false; token 2 is put behind every answer nevertheless, as the "
                "published recipe does");
  tokens = told(R"({"add_bos_token": null})");
  EXPECT_TRUE(tokens.warnings.empty() && tokens.notes.empty());
  tokens = told(R"({"add_bos_token": true})", ByteTokenizer(-1, 2));
  ASSERT_EQ(tokens.warnings.size(), 1U);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "add_bos_token is true; no token is put in front",
                      tokens.warnings[0]);
  EXPECT_TRUE(told(R"({"add_bos_token": false})", ByteTokenizer(-1, 2)).warnings.empty());
  folder_.write("tokenizer_config.json", R"({"add_bos_token": "yes"})");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "add_bos_token is neither true nor false",
                      refusal(model_of(300, 1, {2})));
}

// The piece of the sentencepiece file is compared too.
TEST_F(SpecialTokenTest, AnIdOtherThanThePieceIsSaid) {
  train_sentencepiece(folder_, kLlamaLike);
  const auto tokenizer = open_tokenizer(folder_.path());
  const std::string file = folder_.write(
      "tokenizer_config.json",
      R"({"eos_token": "</s>", "added_tokens_decoder": {"2": {"content": "</s>", "special": true}}})");
  EXPECT_TRUE(agree(model_of(430, 1, {2}), *tokenizer).warnings.empty());
  folder_.write(
      "tokenizer_config.json",
      R"({"eos_token": "</s>", "added_tokens_decoder": {"425": {"content": "</s>", "special": true}}})");
  const SpecialTokens tokens = agree(model_of(430, 1, {2}), *tokenizer);
  ASSERT_EQ(tokens.warnings.size(), 2U);
  EXPECT_EQ(tokens.warnings[0], "the files do not agree on the id of '</s>': tokenizer.model has token 2; " +
                                    file + " has token 425. Token 425 is taken");
  EXPECT_EQ(tokens.stops, (Ids{2, 425}));
}

TEST_F(SpecialTokenTest, AnOrdinaryPieceThatEndsAnswersIsSaid) {
  const SpecialTokens tokens = agree(model_of(300, 1, {2, 'x' + 3}));
  ASSERT_EQ(tokens.warnings.size(), 1U);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "token 123 ('x')", tokens.warnings[0]);
}

// A piece that the library finds in every text ("user-defined") is how some models hold "<|im_end|>": what a
// user writes must not end the turn.
TEST(SpecialTokensInText, AreNeverMatched) {
  const TokenizerFolder folder;
  train_sentencepiece(folder, std::string(kLlamaLike) + " '--user_defined_symbols=<|im_end|>,<|note|>'");
  const auto plain = open_tokenizer(folder.path());
  const int32_t end = plain->piece_id("<|im_end|>");
  const int32_t note = plain->piece_id("<|note|>");
  ASSERT_GE(end, 3);
  EXPECT_EQ(plain->piece_id("no such piece"), -1);
  const std::string text = "a <|im_end|> b </s><s><unk> <|note|>";
  const auto has = [](const std::vector<int32_t>& ids, int32_t id) {
    return std::ranges::count(ids, id) > 0;
  };
  EXPECT_TRUE(has(plain->encode(text), end));  // nobody says that it is special
  for (const SpecialPieces& special : {SpecialPieces{{end}, {}}, SpecialPieces{{}, {"<|im_end|>"}}}) {
    const auto tokenizer = open_tokenizer(folder.path(), special);
    EXPECT_EQ(tokenizer->vocab_size(), plain->vocab_size());
    EXPECT_EQ(tokenizer->eos_id(), plain->eos_id());
    EXPECT_TRUE(tokenizer->is_control(end));
    const std::vector<int32_t> ids = tokenizer->encode(text);
    EXPECT_FALSE(has(ids, end));
    EXPECT_TRUE(has(ids, note));
    for (const int32_t id : {0, 1, 2}) EXPECT_FALSE(has(ids, id)) << id;
    EXPECT_EQ(tokenizer->decode(ids), text);
    EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{end}), "");
    Row row;
    row.system = row.corpus = text;
    row.turns = {{text, text}, {text, text}};
    row.corpus.clear();
    const Sample sample = encode_row(*tokenizer, row, 100000);
    EXPECT_EQ(std::ranges::count(sample.tokens, tokenizer->eos_id()), 2);
    EXPECT_EQ(std::ranges::count(sample.tokens, tokenizer->bos_id()), 1);
    EXPECT_FALSE(has(sample.tokens, end));
  }
}

}  // namespace
}  // namespace pesc
