#include <gtest/gtest.h>
#include <sys/stat.h>

#include <random>
#include <sstream>

#include "ops/core/check.h"
#include "runtime/text/utf8.h"
#include "runtime/tokenizer/stream_decoder.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

namespace fs = std::filesystem;

template <class Call>
std::string data_error(const Call& call) {
  try {
    call();
  } catch (const DataError& error) {
    return error.what();
  }
  return "no error";
}

class SentencePiece : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TokenizerFolder>();
    train_sentencepiece(*folder_, kLlamaLike);
    tokenizer_ = open_tokenizer(folder_->path());
  }
  static void TearDownTestSuite() {
    tokenizer_.reset();
    folder_.reset();
  }
  static std::string model_bytes() {
    std::ifstream in(*folder_ / "tokenizer.model", std::ios::binary);
    std::stringstream all;
    all << in.rdbuf();
    return all.str();
  }
  static std::string stream(const std::vector<int32_t>& ids) {
    StreamDecoder decoder(*tokenizer_);
    std::string out;
    for (const int32_t id : ids) {
      const std::string text = decoder.push(id);
      // Only whole characters come out, at every token.
      EXPECT_EQ(valid_utf8_prefix(text), text.size());
      out += text;
    }
    return out + decoder.finish();
  }
  static std::unique_ptr<TokenizerFolder> folder_;
  static std::unique_ptr<Tokenizer> tokenizer_;
};
std::unique_ptr<TokenizerFolder> SentencePiece::folder_;
std::unique_ptr<Tokenizer> SentencePiece::tokenizer_;

const char* const kTexts[] = {
    "Hello world",
    "  two  leading spaces, one trailing ",
    "\n### Human:\nwhat is 7?\n### Assistant:\n",
    "tab\tand \xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E \xC3\xA9 \xF0\x9F\x98\x80\xF0\x9F\x98\x80!",
    "a",
    " ",
    "<s></s><unk><0x41>"};

TEST_F(SentencePiece, RoundTripsAnyText) {
  for (const char* text : kTexts) {
    const std::vector<int32_t> ids = tokenizer_->encode(text);
    EXPECT_EQ(tokenizer_->decode(ids), text);
    for (const int32_t id : ids) {
      EXPECT_GE(id, 0);
      EXPECT_LT(id, tokenizer_->vocab_size());
    }
  }
  EXPECT_TRUE(tokenizer_->encode("").empty());
}

TEST_F(SentencePiece, RefusesATextThatIsNoUtf8WithTheByte) {
  for (const std::string text : {"abc\xFF", "abc\xE6\x97", "abc\xC0\x80z", "abc\xED\xA0\x80"}) {
    const std::string error = data_error([&] { (void)tokenizer_->encode(text); });
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "byte 3 of", error);
    EXPECT_EQ(data_error([&] { (void)tokenizer_->encode_with_ranges(text, {}); }), error);
    EXPECT_EQ(data_error([&] { (void)tokenizer_->encode_start(text, 100); }), error);
  }
}

TEST_F(SentencePiece, NamesItsControlTokensAndNeverAddsThem) {
  EXPECT_EQ(tokenizer_->vocab_size(), 420);
  EXPECT_EQ(tokenizer_->bos_id(), 1);
  EXPECT_EQ(tokenizer_->eos_id(), 2);
  for (const char* text : kTexts) {
    for (const int32_t id : tokenizer_->encode(text)) EXPECT_TRUE(id != 1 && id != 2) << text;
  }
  EXPECT_EQ(tokenizer_->decode(std::vector<int32_t>{1, 2}), "");
}

TEST_F(SentencePiece, AnIdBeyondThePiecesDecodesAsUnknown) {
  const std::vector<int32_t> padding = {420, 100000, -5};
  const std::vector<int32_t> unknown = {0, 0, 0};
  EXPECT_EQ(tokenizer_->decode(padding), tokenizer_->decode(unknown));
}

TEST_F(SentencePiece, StreamsWhatDecodingAllAtOnceGives) {
  for (const char* text : kTexts) EXPECT_EQ(stream(tokenizer_->encode(text)), text);
}

TEST_F(SentencePiece, HoldsACharacterBackUntilItsLastByte) {
  const std::vector<int32_t> ids =
      tokenizer_->encode("\xF0\x9F\x98\x80");  // the space mark and four byte pieces
  ASSERT_EQ(ids.size(), 5);
  StreamDecoder decoder(*tokenizer_);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(decoder.push(ids[i]), "");
  EXPECT_EQ(decoder.push(ids[4]), "\xF0\x9F\x98\x80");
  EXPECT_EQ(decoder.finish(), "");
}

TEST_F(SentencePiece, StreamOfBrokenBytesEqualsTheWholeDecoding) {
  const std::vector<int32_t> euro = tokenizer_->encode("\xE2\x82\xAC");  // mark, E2, 82, AC
  ASSERT_EQ(euro.size(), 4);
  const int32_t e2 = euro[1];
  const int32_t b82 = euro[2];
  const int32_t ac = euro[3];
  for (const std::vector<int32_t>& ids : std::vector<std::vector<int32_t>>{
           {e2}, {e2, b82}, {b82, b82, e2, b82, ac}, {b82, b82, b82, b82, b82, e2}, {e2, e2, b82, ac, b82}}) {
    EXPECT_EQ(stream(ids), tokenizer_->decode(ids));
  }
}

// The window must forget without losing the spaces between words.
TEST_F(SentencePiece, StreamsLongTextsOfAnyTokens) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 20; ++trial) {
    std::string text;
    while (text.size() < 2000)
      text += std::string(kTexts[random() % std::size(kTexts)]) + (random() % 2 ? " " : "");
    const std::vector<int32_t> ids = tokenizer_->encode(text);
    ASSERT_GT(ids.size(), 200U);
    EXPECT_EQ(stream(ids), text);
    std::vector<int32_t> any(500);
    for (int32_t& id : any) id = static_cast<int32_t>(random() % 420);
    EXPECT_EQ(stream(any), tokenizer_->decode(any));
    // Nothing but bytes, mostly broken characters.
    for (int32_t& id : any) id = 3 + static_cast<int32_t>(random() % 256);
    EXPECT_EQ(stream(any), tokenizer_->decode(any));
  }
}

TEST_F(SentencePiece, StreamDecoderStartsAnewAfterFinish) {
  StreamDecoder decoder(*tokenizer_);
  for (int round = 0; round < 2; ++round) {
    std::string out;
    for (const int32_t id : tokenizer_->encode("Hello world")) out += decoder.push(id);
    EXPECT_EQ(out + decoder.finish(), "Hello world");
  }
}

TEST_F(SentencePiece, EveryTruncationIsRefused) {
  const std::string bytes = model_bytes();
  const TokenizerFolder cut;
  // All cuts near the ends of fields and some of the others: at many of them the bytes are a valid message.
  for (size_t size = 0; size<bytes.size(); size += size> bytes.size() - 300 ? 1 : 7) {
    // The last field (how text is turned back) has a default that is the same.
    cut.write("tokenizer.model", bytes.substr(0, size));
    std::string error = data_error(
        [&] { EXPECT_EQ(open_tokenizer(cut.path())->encode("Hello"), tokenizer_->encode("Hello")); });
    if (error == "no error") {
      EXPECT_GT(size, bytes.size() - 8) << size;
    } else {
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, cut / "tokenizer.model", error);
    }
  }
}

TEST_F(SentencePiece, DamagedBytesGiveAnErrorOrATokenizerButNeverACrash) {
  const std::string good = model_bytes();
  const TokenizerFolder damaged;
  std::mt19937 random(3);
  int refused = 0;
  for (int trial = 0; trial < 300; ++trial) {
    std::string bytes = good;
    for (int i = 0; i < 8; ++i) bytes[random() % bytes.size()] = static_cast<char>(random());
    damaged.write("tokenizer.model", bytes);
    try {
      const auto tokenizer = open_tokenizer(damaged.path());
      (void)tokenizer->decode(tokenizer->encode("Hello world 42"));
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

TEST_F(SentencePiece, OtherFilesAreRefused) {
  const TokenizerFolder folder;
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "has neither tokenizer.json",
                      data_error([&] { (void)open_tokenizer(folder.path()); }));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "missing",
                      data_error([&] { (void)open_tokenizer(folder / "missing"); }));
  for (const char* text : {"", "{\"model\": 1}", "version https://git-lfs.github.com/spec/v1\n"}) {
    folder.write("tokenizer.model", text);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, folder / "tokenizer.model",
                        data_error([&] { (void)open_tokenizer(folder.path()); }));
  }
  fs::remove(folder / "tokenizer.model");
  fs::create_symlink(*folder_ / "tokenizer.model", folder / "tokenizer.model");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "symbolic link",
                      data_error([&] { (void)open_tokenizer(folder.path()); }));
  fs::remove(folder / "tokenizer.model");
  fs::create_directory(folder / "tokenizer.model");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "directory",
                      data_error([&] { (void)open_tokenizer(folder.path()); }));
  fs::remove(folder / "tokenizer.model");
  ASSERT_EQ(::mkfifo((folder / "tokenizer.model").c_str(), 0600), 0);  // must not wait for a writer
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "FIFO",
                      data_error([&] { (void)open_tokenizer(folder.path()); }));
}

TEST(SentencePieceDefaults, WithoutBeginOfText) {
  const TokenizerFolder folder;
  train_sentencepiece(folder, kDefaultsNoBos);
  const auto tokenizer = open_tokenizer(folder.path());
  EXPECT_EQ(tokenizer->bos_id(), -1);
  EXPECT_GE(tokenizer->eos_id(), 0);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("the lazy dog")), "the lazy dog");
}

ModelConfig model_of(int64_t vocab, int64_t bos, std::vector<int64_t> eos) {
  ModelConfig model;
  model.vocab_size = vocab;
  model.bos_id = bos;
  model.eos_ids = std::move(eos);
  return model;
}

TEST(CheckVocabulary, TakesPaddingAndRefusesOtherSizes) {
  const ByteTokenizer tokenizer;  // 259 pieces
  for (const int64_t vocab : {259, 260, 320, 384, 515}) {
    EXPECT_NO_THROW(check_vocabulary(tokenizer, model_of(vocab, 1, {2}))) << vocab;
  }
  for (const int64_t vocab : {516, 32000}) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "259",
                        data_error([&] { check_vocabulary(tokenizer, model_of(vocab, 1, {2})); }));
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, std::to_string(vocab),
                        data_error([&] { check_vocabulary(tokenizer, model_of(vocab, 1, {2})); }));
  }
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "259",
                      data_error([&] { check_vocabulary(tokenizer, model_of(258, 1, {2})); }));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "258",
                      data_error([&] { check_vocabulary(tokenizer, model_of(258, 1, {2})); }));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "no embedding",
                      data_error([&] { check_vocabulary(tokenizer, model_of(258, 1, {2})); }));
}

TEST_F(SentencePiece, TheCanonicalTextIsWhatComesBack) {
  for (const char* text : kTexts) EXPECT_EQ(canonical_text(*tokenizer_, text), text);
  const TokenizerFolder folder;
  train_sentencepiece(folder, kDefaultsNoBos);  // squeezes spaces, and knows no other characters
  const auto squeezing = open_tokenizer(folder.path());
  EXPECT_EQ(canonical_text(*squeezing, " the  lazy   dog "), "the lazy dog");
  EXPECT_EQ(canonical_text(*squeezing, "the  \xE6\x97\xA5"), "the  \xE6\x97\xA5");
}

}  // namespace
}  // namespace pesc
