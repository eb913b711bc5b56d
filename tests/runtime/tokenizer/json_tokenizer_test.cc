#include "runtime/tokenizer/json_tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "ops/core/check.h"
#include "runtime/text/utf8.h"
#include "runtime/tokenizer/stream_decoder.h"
#include "tests/runtime/data/test_tokenizers.h"
#include "tests/runtime/tokenizer/fixtures.h"

namespace pesc {
namespace {

using nlohmann::json;

// Byte offsets of a text as offsets of characters.
std::vector<size_t> in_characters(std::string_view text) {
  std::vector<size_t> out;
  size_t count = 0;
  for (const char c : text) {
    if (!out.empty() && (static_cast<unsigned char>(c) & 0xC0U) != 0x80U) ++count;
    out.push_back(count);
  }
  out.push_back(text.empty() ? 0 : count + 1);
  return out;
}

json answer(const Tokenizer& tokenizer, const std::string& text, const EncodeOptions& options) {
  const Encoding encoding = tokenizer.encode_with_ranges(text, options);
  const std::vector<size_t> characters = in_characters(text);
  json offsets = json::array();
  for (const TextRange& range : encoding.ranges) {
    offsets.push_back(characters[range.begin]);
    offsets.push_back(characters[range.end]);
  }
  return {encoding.ids, offsets, tokenizer.decode(encoding.ids), tokenizer.decode_all(encoding.ids)};
}

std::string error_of(const json& document) {
  try {
    (void)parse_json_tokenizer(document.dump(), "FOLDER/tokenizer.json", {}, "", "");
  } catch (const DataError& error) {
    return error.what();
  }
  return "no error";
}

TEST(JsonTokenizer, GivesTheIdsRangesAndTextsOfTheOriginalLibrary) {
  const TokenizerFixtures& fixtures = tokenizer_fixtures();
  ASSERT_GT(fixtures.all().size(), 50);
  constexpr EncodeOptions kOptions[3] = {{AddedTokens::kAll, {}, true, true},
                                         {AddedTokens::kAll, {}, false, true},
                                         {AddedTokens::kOrdinary, {}, false, true}};
  for (const json& fixture : fixtures.all()) {
    const auto tokenizer = fixtures.open(fixture["name"]);
    for (size_t i = 0; i < fixtures.texts().size(); ++i) {
      const std::string text = fixtures.texts()[i];
      const json& expected = fixture["answers"][i];
      for (size_t k = 0; k < 3; ++k) {
        const json& row = expected[k].is_number() ? expected[expected[k].get<size_t>()] : expected[k];
        EXPECT_EQ(answer(*tokenizer, text, kOptions[k]), row)
            << fixture["name"] << ", text " << i << ", options " << k;
      }
      EXPECT_EQ(tokenizer->encode(text), tokenizer->encode_with_ranges(text, {}).ids)
          << fixture["name"] << ", text " << i;
    }
  }
}

TEST(JsonTokenizer, SpecialTokensTouchNoPlainRange) {
  const auto tokenizer = tokenizer_fixtures().open("added tokens");
  const std::string text = "<a>b<a><ab><a>";
  const int32_t a = tokenizer->piece_id("<a>");
  const auto count = [&](const EncodeOptions& options) {
    const std::vector<int32_t> ids = tokenizer->encode_with_ranges(text, options).ids;
    EXPECT_EQ(tokenizer->decode_all(ids), text);
    return std::ranges::count(ids, a);
  };
  EXPECT_EQ(count({AddedTokens::kAll}), 3);
  EXPECT_EQ(count({AddedTokens::kOrdinary}), 0);
  EXPECT_EQ(count({AddedTokens::kNone}), 0);
  const std::vector<TextRange> plain{
      {0, 1}, {6, 12}};  // one byte of the first and of the second, and none of the last
  EXPECT_EQ(count({AddedTokens::kAll, plain}), 0);
  const std::vector<TextRange> middle{{3, 7}};
  EXPECT_EQ(count({AddedTokens::kAll, middle}), 2);
  const std::vector<int32_t> ids = tokenizer->encode_with_ranges(text, {AddedTokens::kAll, plain}).ids;
  EXPECT_EQ(std::ranges::count(ids, tokenizer->piece_id("<ab>")), 1)
      << "ordinary ones are found in plain ranges";
}

TEST(JsonTokenizer, WithoutTrimmingTheRangesCoverTheText) {
  for (const char* name : {"gpt2", "llama 3", "deepseek", "qwen 2", "tekken"}) {
    const auto tokenizer = tokenizer_fixtures().open(name);
    const std::string text = "  Hello\tWorld  \xE6\x97\xA5 12345\n ";
    size_t done = 0;
    for (const TextRange& range : tokenizer->encode_with_ranges(text, {}).ranges) {
      EXPECT_LE(range.begin, done) << name;
      EXPECT_LT(range.begin, range.end) << name;
      done = range.end;
    }
    EXPECT_EQ(done, text.size()) << name;
  }
}

TEST(JsonTokenizer, RefusesATextThatIsNoUtf8WithTheByte) {
  const auto tokenizer = tokenizer_fixtures().open("gpt2");
  for (const std::string text : {"abc\xFF", "abc\xE6\x97", "abc\xC0\x80z", "abc\xED\xA0\x80"}) {
    try {
      (void)tokenizer->encode(text);
      ADD_FAILURE() << "taken";
    } catch (const DataError& error) {
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, "byte 3 of", error.what());
    }
  }
}

TEST(JsonTokenizer, StreamsWhatItDecodes) {
  std::mt19937 random(3);
  for (const char* name : {"gpt2", "llama 2", "mistral", "gemma", "metaspace first", "added tokens"}) {
    const auto tokenizer = tokenizer_fixtures().open(name);
    for (int trial = 0; trial < 20; ++trial) {
      std::string text;
      while (text.size() < 600) text += tokenizer_fixtures().texts()[random() % 28].get<std::string>() + " ";
      const std::vector<int32_t> ids = tokenizer->encode(text);
      StreamDecoder decoder(*tokenizer);
      std::string out;
      for (const int32_t id : ids) {
        const std::string more = decoder.push(id);
        ASSERT_EQ(valid_utf8_prefix(more), more.size());
        out += more;
      }
      ASSERT_EQ(out + decoder.finish(), tokenizer->decode(ids)) << name << ", trial " << trial;
    }
  }
}

TEST(JsonTokenizer, DecodesAnyIds) {
  std::mt19937 random(4);
  for (const json& fixture : tokenizer_fixtures().all()) {
    const auto tokenizer = tokenizer_fixtures().open(fixture["name"]);
    std::vector<int32_t> ids{-1, tokenizer->vocab_size(), INT32_MAX};
    for (int i = 0; i < 300; ++i) ids.push_back(static_cast<int32_t>(random() % 600));
    const std::string text = tokenizer->decode(ids);
    EXPECT_EQ(valid_utf8_prefix(text), text.size()) << fixture["name"];
  }
}

// No piece is found where the pattern cuts nothing: all of the text is one.
// Eight times the text takes eight times as long, or a little more for the heap of merges; it would take 64 times
// as long if every merge looked at the whole piece. Processor time, since other programs run beside this one.
TEST(JsonTokenizer, TakesLongRunsInTimeThatGrowsWithThem) {
  for (const char* name : {"llama 3", "gpt2", "llama 2", "deepseek"}) {
    for (const std::string unit : {"a", "hel", " ", "\n", "1", "\xE6\x97\xA5"}) {
      double took[2];
      for (int i = 0; i < 2; ++i) {
        const auto tokenizer = tokenizer_fixtures().open(name);
        std::string text;
        while (text.size() < (i == 0 ? size_t{1} << 16 : size_t{1} << 19)) text += unit;
        const std::clock_t start = std::clock();
        const std::vector<int32_t> ids = tokenizer->encode(text);
        took[i] = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
        EXPECT_EQ(tokenizer->decode(ids), text) << name;
      }
      EXPECT_LT(took[1], 32 * (took[0] + 0.01)) << name;
    }
  }
}

TEST(JsonTokenizer, TheStartOfALongTextThatIsOnePieceIsTakenAlone) {
  for (const char* name : {"llama 2", "mistral"}) {
    const auto tokenizer = tokenizer_fixtures().open(name);
    std::string text;
    for (int i = 0; i < 100'000; ++i) text += "word \xE6\x97\xA5 " + std::to_string(i);
    const std::vector<int32_t> all = tokenizer->encode(text);
    for (const int64_t limit : {int64_t{0}, int64_t{1000}, int64_t{60'000}}) {
      const EncodedStart start = tokenizer->encode_start(text, limit);
      ASSERT_EQ(start.ids.size(), static_cast<size_t>(limit + 1)) << name;
      EXPECT_LT(start.bytes, text.size()) << name;
      EXPECT_TRUE(std::equal(start.ids.begin(), start.ids.end(), all.begin())) << name;
    }
    const EncodedStart whole = tokenizer->encode_start(text, static_cast<int64_t>(all.size()));
    EXPECT_EQ(whole.ids, all) << name;
    EXPECT_EQ(whole.bytes, text.size()) << name;
  }
}

TEST(JsonTokenizer, TheStartOfALongTextIsTakenAlone) {
  const auto tokenizer = tokenizer_fixtures().open("llama 3");
  std::string text;
  for (int i = 0; i < 100'000; ++i) text += "word " + std::to_string(i) + " ";
  const std::vector<int32_t> all = tokenizer->encode(text);
  const EncodedStart start = tokenizer->encode_start(text, 1000);
  ASSERT_GT(start.ids.size(), 1000);
  ASSERT_LT(start.ids.size(), 1100);
  EXPECT_LT(start.bytes, 10'000);
  EXPECT_TRUE(std::equal(start.ids.begin(), start.ids.end(), all.begin()));
  const EncodedStart whole = tokenizer->encode_start(text, static_cast<int64_t>(all.size()));
  EXPECT_EQ(whole.ids, all);
  EXPECT_EQ(whole.bytes, text.size());
}

TEST(JsonTokenizer, ThreadsShareOneTokenizer) {
  const auto tokenizer = tokenizer_fixtures().open("llama 3");
  std::vector<std::string> texts;
  std::mt19937 random(5);
  for (int i = 0; i < 3000; ++i) {
    std::string text;
    for (int k = 0; k < 8; ++k)
      text += " " + std::string(1 + random() % 9, static_cast<char>('a' + random() % 4));
    texts.push_back(text);
  }
  std::vector<std::vector<int32_t>> expected;
  for (const std::string& text : texts) expected.push_back(tokenizer->encode(text));
  const auto fresh = tokenizer_fixtures().open("llama 3");
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < texts.size(); ++i) wrong[t] += fresh->encode(texts[i]) != expected[i] ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4));
}

TEST(JsonTokenizer, AFolderSaysWhereATextBeginsAndEnds) {
  const TokenizerFolder folder;
  json document = tokenizer_fixtures().document(tokenizer_fixtures().parts("added tokens"));
  folder.write("tokenizer.json", document.dump());
  folder.write("tokenizer_config.json", R"({"bos_token": null, "eos_token": {"content": "<a>"}})");
  const auto tokenizer = open_tokenizer(folder.path());
  EXPECT_EQ(tokenizer->bos_id(), -1);
  EXPECT_EQ(tokenizer->eos_id(), tokenizer->piece_id("<a>"));
  EXPECT_EQ(tokenizer->piece(tokenizer->eos_id()), "<a>");
  EXPECT_TRUE(tokenizer->is_control(tokenizer->eos_id()));
  EXPECT_FALSE(tokenizer->is_control(tokenizer->piece_id("<b>")));
  EXPECT_EQ(tokenizer->vocab_size(), document["model"]["vocab"].size() + document["added_tokens"].size());
  EXPECT_TRUE(tokenizer->is_unknown(tokenizer->vocab_size()));
  EXPECT_EQ(tokenizer->piece_id("no such piece"), -1);
  EXPECT_EQ(tokenizer_digest(folder.path()).size(), 32);
  // What other files call special comes from no user's text, whatever tokenizer.json says.
  const int32_t b = tokenizer->piece_id("<b>");
  const auto stricter = open_tokenizer(folder.path(), {{b}, {"<e>"}});
  EXPECT_EQ(std::ranges::count(tokenizer->encode("x <b><e>"), b), 1);
  EXPECT_EQ(std::ranges::count(stricter->encode("x <b>"), b), 0);
  EXPECT_TRUE(stricter->is_control(b));
  EXPECT_TRUE(stricter->is_control(stricter->piece_id("<e>")));
}

TEST(JsonTokenizer, RefusesByNameWhatItDoesNotSupport) {
  const json good = tokenizer_fixtures().document(tokenizer_fixtures().parts("gpt2"));
  EXPECT_EQ(error_of(good), "no error");
  const auto refused = [&](const char* pointer, const json& value, const std::string& expected) {
    json document = good;
    document[json::json_pointer(pointer)] = value;
    const std::string error = error_of(document);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, expected, error) << pointer << " " << value;
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "FOLDER/tokenizer.json: ", error);
  };
  const auto split = [](const char* pattern) {
    return json{
        {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  };
  refused("/model/type", "Unigram", "model Unigram");
  refused("/model/type", "WordPiece", "model WordPiece");
  refused("/model/dropout", 0.5, "dropout");
  refused("/model/end_of_word_suffix", "</w>", "end_of_word_suffix");
  refused("/model/merges/0", "a b c", "merge 1");
  refused("/model/merges/0", json{"a"}, "merge");
  refused("/model/merges/0", json{"nowhere", "a"}, "'nowhere'");
  refused("/model/vocab/zz", 3, "same id 3");
  refused("/model/vocab/zz", 1 << 25, "33554432");
  refused("/model/vocab/zz", -1, "'zz'");
  refused("/model/vocab/zz", "3", "'zz'");
  refused("/version", "2.0", "version");
  refused("/normalizer", {{"type", "NFKC"}}, "normalizer NFKC");
  refused("/normalizer", {{"type", "BertNormalizer"}}, "normalizer BertNormalizer");
  refused("/normalizer", {{"no", "type"}}, "normalizer");
  refused("/normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "x*"}}}, {"content", ""}},
          "matches nothing");
  refused("/pre_tokenizer", {{"type", "UnicodeScripts"}}, "pre_tokenizer UnicodeScripts");
  refused("/pre_tokenizer", split(R"(\w+)"), R"('\w')");
  refused("/pre_tokenizer", split(R"(a\b)"), R"('\b')");
  refused("/pre_tokenizer", split(R"(\p{Han})"), R"(\p{Han})");
  refused("/pre_tokenizer", split("(a"), "a ( without its )");
  refused("/pre_tokenizer", split("a)"), "a ) without its (");
  refused("/pre_tokenizer", split("[a"), "a [ without its ]");
  refused("/pre_tokenizer", split("^a"), "'^'");
  refused("/pre_tokenizer", split("(?<name>a)"), "'(?<n'");
  refused("/pre_tokenizer", split("(?i:st)"), "'st' under (?i)");
  refused("/pre_tokenizer", split("a{1001}"), "above 1000");
  refused("/pre_tokenizer", split("(?<=a+)b"), "refused by PCRE2");
  refused("/pre_tokenizer",
          {{"type", "Split"}, {"pattern", {{"String", ""}}}, {"behavior", "Isolated"}, {"invert", false}},
          "empty string");
  refused("/pre_tokenizer",
          {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Sideways"}, {"invert", false}},
          "Sideways");
  refused("/post_processor", {{"type", "BertProcessing"}}, "post_processor BertProcessing");
  refused("/decoder", {{"type", "WordPiece"}}, "decoder WordPiece");
  refused("/added_tokens", json::array({{{"id", 7}, {"content", "<x>"}}}), "has the id 7");
  refused("/added_tokens", json::array({{{"id", "7"}, {"content", "<x>"}}}), "no token id");
  json deep = {{"type", "NFC"}};
  for (int i = 0; i < 20; ++i) deep = {{"type", "Sequence"}, {"normalizers", json::array({deep})}};
  refused("/normalizer", deep, "nested too deep");
}

TEST(JsonTokenizer, RefusesWhatIsNoDocumentWithThePlace) {
  const std::string good = tokenizer_fixtures().document(tokenizer_fixtures().parts("gpt2")).dump();
  for (const std::string& text :
       {std::string("[]"), std::string("3"), std::string("{}"), good.substr(0, good.size() / 2), good + "}",
        std::string("{\"model\": {\"vocab\": {}, \"vocab\": {}}}"), std::string()}) {
    EXPECT_THROW((void)parse_json_tokenizer(text, "x", {}, "", ""), DataError) << text.substr(0, 60);
  }
  std::string deep(100'000, '[');
  EXPECT_THROW((void)parse_json_tokenizer(deep, "x", {}, "", ""), DataError);
}

TEST(JsonTokenizer, ReadsMistralsOwnFile) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  json vocab = json::array();
  const auto add = [&](const std::string& bytes) {
    uint32_t bits = 0;
    for (size_t i = 0; i < 3; ++i)
      bits = bits << 8 | (i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0U);
    std::string text;
    for (int shift = 18; shift >= 0; shift -= 6) text += kDigits[bits >> shift & 63];
    text.replace(bytes.size() + 1, 3 - bytes.size(), 3 - bytes.size(), '=');
    vocab.push_back({{"rank", vocab.size()}, {"token_bytes", text}, {"token_str", nullptr}});
  };
  for (int b = 0; b < 256; ++b) add(std::string(1, static_cast<char>(b)));
  for (const char* piece : {"lo", "he", "hel"}) add(piece);
  json document{{"config",
                 {{"pattern", "\\p{L}+|\\P{L}+"},
                  {"default_vocab_size", 30 + 259},
                  {"default_num_special_tokens", 30}}},
                {"vocab", vocab}};
  const auto tokenizer = parse_tekken_tokenizer(document.dump(), "tekken.json");
  const Encoding all = tokenizer->encode_with_ranges("<s>hello[INST]", {AddedTokens::kAll, {}, true});
  EXPECT_EQ(all.ids, (std::vector<int32_t>{1, 1, 30 + 258, 30 + 256, 3}));
  EXPECT_EQ(tokenizer->decode(all.ids), "hello");
  EXPECT_EQ(tokenizer->decode_all(all.ids), "<s><s>hello[INST]");
  EXPECT_EQ(tokenizer->piece_id("<SPECIAL_29>"), 29);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_EQ(tokenizer->vocab_size(), 289);
  const auto refused = [&](const char* pointer, const json& value) {
    json wrong = document;
    wrong[json::json_pointer(pointer)] = value;
    EXPECT_THROW((void)parse_tekken_tokenizer(wrong.dump(), "x"), DataError) << pointer;
  };
  refused("/config/default_vocab_size", 400);
  refused("/config/default_num_special_tokens", -1);
  refused("/config/pattern", "\\w");
  refused("/config/pattern", 1);
  refused("/config/version", "four");
  refused("/config/version", 3);
  EXPECT_EQ(tokenizer->mistral_version(), 0);
  document["config"]["version"] = "v13";
  EXPECT_EQ(parse_tekken_tokenizer(document.dump(), "x")->mistral_version(), 13);
  refused("/vocab/3/token_bytes", "");
  refused("/vocab/3/token_bytes", std::string(8000, 'A'));
  refused("/special_tokens", json::array({{{"rank", 0}, {"token_str", 1}}}));
  refused("/vocab/3/rank", 4);
  refused("/vocab/3/token_bytes", "*");
  refused("/vocab/3/token_bytes", "AA==");
  refused("/special_tokens", "none");
}

}  // namespace
}  // namespace pesc
