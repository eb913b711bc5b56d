// Files that would take any memory or time, or the stack, are refused; long texts are not.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ops/core/check.h"
#include "runtime/tokenizer/aligned_text.h"
#include "runtime/tokenizer/json_tokenizer.h"
#include "runtime/tokenizer/normalizer.h"
#include "runtime/tokenizer/pattern.h"
#include "tests/runtime/tokenizer/fixtures.h"

namespace pesc {
namespace {

using nlohmann::json;

json gpt2_document() {
  return tokenizer_fixtures().document(tokenizer_fixtures().parts("gpt2"));
}

std::unique_ptr<Tokenizer> opened(const json& document) {
  return parse_json_tokenizer(document.dump(), "FOLDER/tokenizer.json", {}, "", "");
}

json many(const char* name, const json& part, size_t count) {
  return {{"type", "Sequence"}, {name, json(count, part)}};
}

template <class Call>
std::string limit_error(const Call& call) {
  try {
    call();
  } catch (const DataError& error) {
    return error.what();
  }
  return "no error";
}

TEST(JsonTokenizerLimits, WhatIsNoJsonIsSaidWithItsPlace) {
  const std::string whole = gpt2_document().dump();
  const auto refused = [](const std::string& text, const std::string& expected) {
    const std::string error =
        limit_error([&] { (void)parse_json_tokenizer(text, "FOLDER/tokenizer.json", {}, "", ""); });
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "FOLDER/tokenizer.json: ", error);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, expected, error);
  };
  refused(whole.substr(0, whole.size() - 1), "it was cut: copy or download it again");
  refused(whole + std::string("\0}", 2), "holds a zero byte");
  refused(whole + "}", "'}' stands behind the object");
  refused("{\"a\": nan}", "is not valid JSON at byte 8: 'nan' is no JSON value");
}

TEST(JsonTokenizerLimits, LongSequencesOfComponentsAreRefused) {
  const auto refused = [](const char* kind, const json& part, const std::string& expected) {
    json document = gpt2_document();
    document[kind] = part;
    const std::string error = limit_error([&] { (void)opened(document); });
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, expected, error);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "FOLDER/tokenizer.json: ", error);
  };
  // A text would pass through 200,000 calls, each inside the one before.
  const json digits{{"type", "Digits"}, {"individual_digits", true}};
  refused("pre_tokenizer", many("pretokenizers", digits, 200'000),
          "pre_tokenizer Digits: is one of more than 64");
  refused("pre_tokenizer", many("pretokenizers", digits, 65), "at most 64 are supported");
  refused("normalizer", many("normalizers", {{"type", "NFC"}}, 65), "normalizer NFC: is one of more than 64");
  refused("decoder", many("decoders", {{"type", "Fuse"}}, 65), "decoder Fuse: is one of more than 64");
  refused("post_processor",
          many("processors", {{"type", "ByteLevel"}, {"trim_offsets", true}, {"add_prefix_space", true}}, 65),
          "post_processor ByteLevel: is one of more than 64");
  json most = gpt2_document();
  most["pre_tokenizer"] = many("pretokenizers", digits, 64);
  const auto tokenizer = opened(most);
  EXPECT_EQ(tokenizer->encode("a12").size(), 3);
}

json replaced(const char* what, const std::string& with) {
  return {{"type", "Replace"}, {"pattern", {{"String", what}}}, {"content", with}};
}

TEST(JsonTokenizerLimits, ATextThatTheFileBlowsUpIsRefused) {
  const auto refused = [](const char* kind, const json& part, const std::string& expected) {
    json document = gpt2_document();
    document[kind] = part;
    const auto tokenizer = opened(document);
    try {
      const std::vector<int32_t> ids = tokenizer->encode(std::string(30, 'a'));
      (void)tokenizer->decode(ids);
      ADD_FAILURE() << "taken: " << expected;
    } catch (const DataError& error) {
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, expected, error.what());
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, "take the tokenizer's file from", error.what());
    }
  };
  const std::string most = std::to_string(most_bytes(30));
  const json thousand = replaced("a", std::string(1000, 'a'));
  const json twice = replaced("a", "aa");
  const json longer{{"type", "Prepend"}, {"prepend", std::string(1'000'000, 'a')}};
  refused("normalizer", many("normalizers", thousand, 3), "normalizer Replace: makes ");
  refused("normalizer", many("normalizers", twice, 40), "of a text of 30; at most " + most);
  refused("normalizer", many("normalizers", longer, 30), "normalizer Prepend: makes 2000030 bytes");
  // The names of the tokens have as many bytes as the text here, whatever they are.
  refused("decoder", many("decoders", thousand, 3), "decoder Replace: makes ");
  refused("decoder", many("decoders", twice, 40), "decoder Replace: makes ");
  // Each doubles what is no ASCII, and makes such of spaces.
  json document = gpt2_document();
  document["pre_tokenizer"] =
      many("pretokenizers", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}, 40);
  const auto levels = opened(document);
  EXPECT_THROW((void)levels->encode("a a a"), DataError);
  // Small pieces, each of which grows by less than is allowed for one.
  document = gpt2_document();
  document["normalizer"] = replaced("b", std::string(100'000, 'a'));
  const size_t id = document["model"]["vocab"].size() + document["added_tokens"].size();
  document["added_tokens"].push_back({{"id", id}, {"content", "<cut>"}});
  const auto cut = opened(document);
  EXPECT_NO_THROW((void)cut->encode("b<cut>b"));
  std::string text;
  for (int i = 0; i < 20; ++i) text += "b<cut>";
  EXPECT_THROW((void)cut->encode(text), DataError);
}

TEST(JsonTokenizerLimits, AddedTokensThatTheNormalizerBlowsUpAreRefused) {
  json document = gpt2_document();
  document["normalizer"] = replaced("b", std::string(1'000'000, 'a'));
  const size_t first = document["model"]["vocab"].size() + document["added_tokens"].size();
  for (size_t i = 0; i < 20; ++i)
    document["added_tokens"].push_back(
        {{"id", first + i}, {"content", str_cat("<", i, "b>")}, {"normalized", true}});
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "added tokens up to '<16b>': have ",
                      limit_error([&] { (void)opened(document); }));
}

// The run would be looked through again for each of its spaces: 20 thousand million steps.
TEST(JsonTokenizerLimits, AddedTokensThatTakeSpacesTakeLongRuns) {
  constexpr size_t kSpaces = 200'000;
  for (const bool left : {false, true}) {
    for (const bool right : {false, true}) {
      json document = gpt2_document();
      const size_t id = document["model"]["vocab"].size() + document["added_tokens"].size();
      document["added_tokens"].push_back({{"id", id}, {"content", " "}, {"lstrip", left}, {"rstrip", right}});
      const auto tokenizer = opened(document);
      const auto space = static_cast<int32_t>(id);
      const std::clock_t start = std::clock();
      const std::vector<int32_t> ids =
          tokenizer->encode("a" + std::string(kSpaces, ' ') + "a" + std::string(kSpaces, ' '));
      EXPECT_LT(std::clock() - start, 5 * CLOCKS_PER_SEC);
      // One that takes spaces on both sides leaves none for another.
      const size_t in_a_run = left && right ? 1 : kSpaces;
      EXPECT_EQ(std::ranges::count(ids, space), 2 * in_a_run) << left << right;
      EXPECT_EQ(ids.size(), 2 * in_a_run + 2);
      // What a token takes of a short run.
      const Encoding few = tokenizer->encode_with_ranges("a   a", {});
      ASSERT_EQ(few.ids.size(), left && right ? 3 : 5);
      EXPECT_EQ(few.ranges[1], (TextRange{1, right ? size_t{4} : size_t{2}}));
    }
  }
}

// As in a row of 16 MiB. What counts is one search's steps: "\\s*[\\r\\n]+" goes to the end of the run and back.
TEST(JsonTokenizerLimits, PatternsMatchLongRunsOfSpaces) {
  const Pattern pattern = Pattern::regex(
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
      "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+");
  const std::string text(size_t{16} << 20, ' ');
  const std::vector<TextRange> found = all_matches(pattern, text + "a");
  EXPECT_EQ(found, (std::vector<TextRange>{{0, text.size() - 1}, {text.size() - 1, text.size() + 1}}));
}

// Each piece a^n can be cut into two in n - 1 ways: 8 million merges, of 12 GB, for a file of 11 MB.
TEST(JsonTokenizerLimits, MistralsOwnFileOfLongRunsIsRefused) {
  json vocab = json::array();
  // "AAAA" stands for three zero bytes.
  for (size_t n = 3; n <= 3072; n += 3)
    vocab.push_back({{"rank", vocab.size()}, {"token_bytes", std::string(n / 3 * 4, 'A')}});
  const size_t count = vocab.size();
  const json document{
      {"config", {{"pattern", "a+"}, {"default_vocab_size", count}, {"default_num_special_tokens", 0}}},
      {"vocab", std::move(vocab)}};
  try {
    (void)parse_tekken_tokenizer(document.dump(), "tekken.json");
    ADD_FAILURE() << "taken";
  } catch (const DataError& error) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                        "tekken.json: the vocabulary's pieces can be put together in more", error.what());
  }
}

// Of one search, and of many that are each short.
TEST(JsonTokenizerLimits, PatternsThatStepBackWithoutEndAreRefusedInBoundedTime) {
  json document = gpt2_document();
  for (const auto& [pattern, size] : {std::pair<const char*, size_t>{"(?:a+)+(?=[bc])", 5000},
                                      {"(?:a|aa)*[bc]", 5000},
                                      {"(?>a*)[bc]|\\D", size_t{1} << 20}}) {
    document["pre_tokenizer"] = {
        {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
    const auto tokenizer = opened(document);
    EXPECT_EQ(tokenizer->decode(tokenizer->encode("aabac")), "aabac");
    const auto start = std::chrono::steady_clock::now();
    try {
      (void)tokenizer->encode(std::string(size, 'a') + "x");
      ADD_FAILURE() << pattern << " found an end";
    } catch (const DataError& error) {
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, str_cat("the pattern '", pattern, "'"), error.what());
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    EXPECT_LT(took.count(), 120) << pattern;
  }
}

}  // namespace
}  // namespace pesc
