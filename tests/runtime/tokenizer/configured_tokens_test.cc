// What the files beside tokenizer.json say of its added tokens.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "ops/core/check.h"
#include "runtime/data/template.h"
#include "runtime/tokenizer/json_tokenizer.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

using nlohmann::json;

// The pieces that PreTrainedTokenizerFast of transformers 5.24.0 gives for such a folder.
TEST(ConfiguredTokens, HaveTheFlagsOfTokenizerConfigJsonAsInTransformers) {
  json vocab = json::object();
  for (int c = ' '; c <= '~'; ++c) vocab[std::string(1, static_cast<char>(c))] = c - ' ';
  const int id = static_cast<int>(vocab.size());
  const json plain{{"content", "<X>"}, {"single_word", false}, {"lstrip", false},
                   {"rstrip", false},  {"normalized", false},  {"special", true}};
  const TokenizerFolder folder;
  const auto pieces = [&](const json& own, const json& entries, const json& named = json::object()) {
    json token = own;
    token["id"] = id;
    const json document{{"version", "1.0"},
                        {"normalizer", {{"type", "Lowercase"}}},
                        {"added_tokens", json::array({token})},
                        {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
    folder.write("tokenizer.json", document.dump());
    json config = named;
    if (!entries.is_null()) config["added_tokens_decoder"] = entries;
    folder.write("tokenizer_config.json", config.dump());
    const auto tokenizer = open_tokenizer(folder.path());
    std::string out;
    for (const int32_t i :
         tokenizer->encode_with_ranges("a <X> b a<X>b <x> ", {AddedTokens::kAll, {}, false, true}).ids)
      out += i == id ? "T" : tokenizer->piece(i);
    return out;
  };
  const auto with = [&](json token, const char* flag, bool value) {
    token[flag] = value;
    return token;
  };
  const auto entry = [&](const json& token) { return json{{std::to_string(id), token}}; };
  const std::string same = "a T b aTb <x> ";
  EXPECT_EQ(pieces(plain, nullptr), same);
  const std::string digest = tokenizer_digest(folder.path());
  EXPECT_EQ(pieces(plain, entry(plain)), same);
  EXPECT_EQ(tokenizer_digest(folder.path()), digest);
  const std::pair<const char*, const char*> flags[] = {{"single_word", "a T b a<x>b <x> "},
                                                       {"lstrip", "aT b aTb <x> "},
                                                       {"rstrip", "a Tb aTb <x> "},
                                                       {"normalized", "a T b aTb T "},
                                                       {"special", "a T b aTb <x> "}};
  for (const auto& [flag, changed] : flags) {
    const json other = with(plain, flag, !plain[flag].get<bool>());
    EXPECT_EQ(pieces(plain, entry(other)), changed) << flag;
    // A token that tokenizer.json calls special stays so.
    EXPECT_EQ(tokenizer_digest(folder.path()) == digest, std::string(flag) == "special") << flag;
    EXPECT_EQ(pieces(other, entry(plain)), same) << flag;
    const std::string with_entry = tokenizer_digest(folder.path());
    EXPECT_EQ(pieces(other, nullptr), changed) << flag;
    EXPECT_NE(tokenizer_digest(folder.path()), with_entry) << flag;
  }
  // Flags that are not there: "normalized" is true unless the token is special, by itself or by its name.
  const json content{{"content", "<X>"}};
  const json ordinary = with(plain, "special", false);
  EXPECT_EQ(pieces(plain, entry(content)), "a T b aTb T ");
  EXPECT_EQ(pieces(plain, entry(with(content, "special", true))), same);
  for (const char* key : {"eos_token", "foo_token"}) {
    EXPECT_EQ(pieces(ordinary, entry(content), {{key, "<X>"}}), same) << key;
    EXPECT_EQ(pieces(with(ordinary, "normalized", true), entry(content), {{key, "<X>"}}), same) << key;
  }
  // By itself or by its name an entry makes a token special, which then no user's text has: another digest.
  (void)pieces(ordinary, entry(ordinary), {{"eos_token", ""}});
  const std::string unnamed = tokenizer_digest(folder.path());
  EXPECT_EQ(open_tokenizer(folder.path())->encode("<X>"), std::vector<int32_t>{id});
  for (const json& special : {json::object(), json{{"eos_token", "<X>"}}}) {
    (void)pieces(ordinary, entry(special.empty() ? plain : ordinary), special);
    EXPECT_NE(tokenizer_digest(folder.path()), unnamed) << special;
    EXPECT_EQ(open_tokenizer(folder.path())->encode("<X>").size(), 3U) << special;
  }
  EXPECT_EQ(pieces(ordinary, entry(content), {{"extra_special_tokens", {"<X>"}}}), "a T b aTb T ");
  EXPECT_EQ(pieces(plain, {{"7", with(plain, "lstrip", true)}}), "aT b aTb <x> ") << "the content counts";
  const auto refused = [&](const json& entries, const std::string& expected) {
    try {
      (void)pieces(plain, entries);
      ADD_FAILURE() << "accepted: " << entries;
    } catch (const DataError& error) {
      EXPECT_EQ(error.what(), folder / "tokenizer_config.json" + ": added_tokens_decoder" + expected);
    }
  };
  refused({{"95", {{"content", "<X>"}, {"lstrip", "yes"}}}}, ".95.lstrip is neither true nor false");
  refused({{"7", plain}, {"95", with(plain, "lstrip", true)}},
          " has '<X>' with other flags under the ids 7 and 95; leave one of them, the one with the flags "
          "that you want");
}

// Each form is one by which transformers 5.24.0 or 4.57.6 makes one token of "<think>".
class TokensBesideTokenizerJson : public ::testing::Test {
 protected:
  // Empty where the folder is taken.
  std::string refusal(bool in_vocabulary = false, bool added = false) {
    json vocab = json::object();
    for (int c = ' '; c <= '~'; ++c) vocab[std::string(1, static_cast<char>(c))] = c - ' ';
    const size_t id = vocab.size();
    if (in_vocabulary) vocab["<think>"] = id;
    json document{{"version", "1.0"},
                  {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
    const json token{{"id", id}, {"content", "<think>"}, {"special", true}};
    if (added) document["added_tokens"] = json::array({token});
    folder_.write("tokenizer.json", document.dump());
    try {
      (void)open_tokenizer(folder_.path());
    } catch (const DataError& error) {
      return error.what();
    }
    return "";
  }
  [[nodiscard]] std::string expected(const std::string& place) const {
    return folder_ / "tokenizer.json" + ": added_tokens has no '<think>', which " + place +
           " names, so that transformers would match it in texts as one token; add it to added_tokens with "
           "its id, or save the tokenizer anew with save_pretrained of transformers";
  }
  TokenizerFolder folder_;
};

TEST_F(TokensBesideTokenizerJson, AreRefusedByNameWhereTokenizerJsonDoesNotAddThem) {
  const json list = json::array({"<think>"}), token{{"content", "<think>"}};
  const auto refused = [&](const char* file, const json& document, const std::string& key,
                           bool role = false) {
    folder_.write(file, document.dump());
    const std::string place = folder_ / file;
    const std::string message = expected(key.empty() ? place : key + " of " + place);
    EXPECT_EQ(refusal(), message) << document;
    EXPECT_EQ(refusal(true), role ? "" : message) << document << " of the vocabulary";
    EXPECT_EQ(refusal(false, true), "") << document;
    EXPECT_EQ(refusal(true, true), "") << document;
    folder_.write(file, "{}");
  };
  const char* config = "tokenizer_config.json";
  const char* map = "special_tokens_map.json";
  refused(config, {{"added_tokens_decoder", {{"95", token}}}}, "added_tokens_decoder.95");
  for (const char* file : {config, map}) {
    for (const char* key : {"additional_special_tokens", "extra_special_tokens"}) {
      refused(file, {{key, list}}, key);
      refused(file, {{key, json::array({token})}}, key);
    }
    refused(file, {{"extra_special_tokens", {{"t_token", "<think>"}}}}, "extra_special_tokens");
    for (const char* key : {"pad_token", "bos_token", "eos_token", "unk_token"}) {
      refused(file, {{key, "<think>"}}, key, true);
      refused(file, {{key, token}}, key, true);
    }
    for (const char* key : {"mask_token", "t_token"}) refused(file, {{key, "<think>"}}, key);
  }
  refused(config, {{"model_specific_special_tokens", {{"t", "<think>"}}}}, "model_specific_special_tokens");
  refused("added_tokens.json", {{"<think>", 95}}, "");
}

TEST_F(TokensBesideTokenizerJson, AreTakenFromTheFilesThatTransformersReads) {
  EXPECT_EQ(refusal(), "");
  const char* config = "tokenizer_config.json";
  folder_.write(config,
                R"({"pad_token": "", "bos_token": null, "add_bos_token": true, "t_token": {"content": ""},
                            "additional_special_tokens": ["", null], "extra_special_tokens": {"t": ""},
                            "chat_template": "<think>", "fill_token": "<think>", "added_tokens_decoder": {}})");
  EXPECT_EQ(refusal(), "");
  // With an added_tokens_decoder, even an empty one, it reads neither of these.
  folder_.write("special_tokens_map.json",
                R"({"pad_token": "<think>", "additional_special_tokens": ["<think>"]})");
  folder_.write("added_tokens.json", R"({"<think>": 95})");
  EXPECT_EQ(refusal(), "");
  folder_.write(config, "{}");
  EXPECT_EQ(refusal(), expected("additional_special_tokens of " + folder_ / "special_tokens_map.json"));
  folder_.write("added_tokens.json", "{}");
  // The map's name of a role replaces that of the configuration; lists of both count.
  folder_.write(config, R"({"pad_token": "<think>"})");
  folder_.write("special_tokens_map.json", R"({"pad_token": null})");
  EXPECT_EQ(refusal(), "");
  folder_.write(config, R"({"additional_special_tokens": ["<think>"]})");
  folder_.write("special_tokens_map.json", R"({"additional_special_tokens": []})");
  EXPECT_EQ(refusal(), expected("additional_special_tokens of " + folder_ / config));
}

}  // namespace
}  // namespace pesc
