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
    EXPECT_EQ(refusal(true), role ? "" : message) << document << " of the vocabulary: added to the others";
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

// Pieces of the vocabulary that begin or end a text, pad it or stand for what is unknown.
class PiecesWithARole : public ::testing::Test {
 protected:
  PiecesWithARole() {
    json vocab = json::object();
    for (int c = ' '; c <= '~'; ++c) vocab[std::string(1, static_cast<char>(c))] = c - ' ';
    id_ = static_cast<int>(vocab.size());
    vocab["<X>"] = id_;
    document_ = {{"version", "1.0"},
                 {"normalizer", {{"type", "Lowercase"}}},
                 {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
  }
  void write(const json& config, const json& map = json::object()) const {
    folder_.write("tokenizer.json", document_.dump());
    folder_.write("tokenizer_config.json", config.dump());
    folder_.write("special_tokens_map.json", map.dump());
  }
  // "a <X> b <x>" as a template writes it, or as a user does.
  [[nodiscard]] std::string pieces(const json& config, const json& map = json::object(),
                                   AddedTokens added = AddedTokens::kAll) const {
    write(config, map);
    std::string out;
    const auto tokenizer = open_tokenizer(folder_.path());
    for (const int32_t i : tokenizer->encode_with_ranges("a <X> b <x>", {added, {}, false, true}).ids)
      out += i == id_ ? "T" : tokenizer->piece(i);
    return out;
  }
  [[nodiscard]] std::string digest() const { return tokenizer_digest(folder_.path()); }
  // What the error says after the name of the file.
  [[nodiscard]] std::string refusal(const json& config, const json& map = json::object()) const {
    write(config, map);
    try {
      (void)open_tokenizer(folder_.path());
    } catch (const DataError& error) {
      const std::string file = folder_ / "tokenizer.json" + ": ", message = error.what();
      return message.starts_with(file) ? message.substr(file.size()) : message;
    }
    return "";
  }
  static json flags(const char* name, bool value) {
    json token{{"__type", "AddedToken"}, {"content", "<X>"}, {"single_word", false},
               {"lstrip", false},        {"rstrip", false},  {"normalized", false}};
    token[name] = value;
    return token;
  }
  const std::string one_ = "a T b <x>", several_ = "a <x> b <x>";
  TokenizerFolder folder_;
  json document_;
  int id_ = 0;
};

// Seen in transformers 5.24.0, but for what users write.
TEST_F(PiecesWithARole, AreOneTokenOfATemplatesText) {
  EXPECT_EQ(pieces(json::object()), several_);
  const std::string without = digest();
  for (const char* key : {"bos_token", "eos_token", "unk_token", "pad_token"}) {
    EXPECT_EQ(pieces({{key, "<X>"}}), one_) << key;
    EXPECT_NE(digest(), without) << key;
    const auto tokenizer = open_tokenizer(folder_.path());
    EXPECT_TRUE(tokenizer->is_control(id_));
    EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{65, id_}), "a");
    EXPECT_EQ(tokenizer->decode_all(std::vector<int32_t>{65, id_}), "a <X>");
    EXPECT_EQ(pieces({{key, "<X>"}}, json::object(), AddedTokens::kOrdinary), several_) << key;
    EXPECT_EQ(pieces(json::object(), {{key, "<X>"}}), one_) << key << " of the map";
    EXPECT_EQ(pieces({{key, "<X>"}}, {{key, nullptr}}), several_) << key << " of the map, which counts";
  }
  EXPECT_EQ(pieces({{"mask_token", nullptr}}), several_);
  EXPECT_EQ(pieces({{"bos_token", "<X>"}, {"eos_token", "<X>"}}), one_);
  const std::string plain = digest();
  EXPECT_EQ(pieces({{"eos_token", flags("lstrip", true)}}), "aT b <x>");
  EXPECT_NE(digest(), plain);
  EXPECT_EQ(pieces({{"eos_token", flags("normalized", true)}}), "a T b T");
}

TEST_F(PiecesWithARole, AreThePaddingOfTokenizerJsonWhereNoFileNamesOne) {
  document_["padding"] = {{"pad_token", "<X>"}, {"pad_id", id_}};
  EXPECT_EQ(pieces(json::object()), one_);
  const std::string padded = digest();
  EXPECT_EQ(pieces({{"pad_token", nullptr}}), several_);
  EXPECT_NE(digest(), padded);
  EXPECT_EQ(pieces({{"pad_token", "<X>"}}), one_);
  document_["padding"]["pad_token"] = "<pad>";
  EXPECT_EQ(
      refusal(json::object()),
      "added_tokens has no '<pad>', which its padding names, so that transformers would match it in texts "
      "as one token; add it to added_tokens with its id, or save the tokenizer anew with save_pretrained "
      "of transformers");
  EXPECT_EQ(refusal({{"pad_token", "<X>"}}), "");
}

TEST_F(PiecesWithARole, AreRefusedWhereTransformersWouldTakeOtherFlagsOrOrdinaryText) {
  const std::string config = folder_ / "tokenizer_config.json";
  EXPECT_EQ(refusal({{"bos_token", "<X>"}, {"eos_token", flags("lstrip", true)}}),
            "'<X>': bos_token of " + config + " and eos_token of " + config +
                " name it with other flags; give it the flags that you want in both");
  // The flags of these count there, or the order of the files.
  const json entries{{std::to_string(id_), flags("lstrip", true)}};
  const auto missing = [&](const std::string& key) {
    return "added_tokens has no '<X>', which " + key + " of " + config +
           " names, so that transformers would match it in texts as one token; add it to added_tokens with "
           "its "
           "id, or save the tokenizer anew with save_pretrained of transformers";
  };
  EXPECT_EQ(refusal({{"eos_token", "<X>"}, {"added_tokens_decoder", entries}}),
            missing("added_tokens_decoder." + std::to_string(id_)));
  EXPECT_EQ(refusal({{"eos_token", "<X>"}, {"additional_special_tokens", {flags("lstrip", true)}}}),
            missing("additional_special_tokens"));
  EXPECT_EQ(refusal({{"eos_token", "<X>"}, {"t_token", "<X>"}}), missing("t_token"));
  for (const char* key : {"pad_token", "unk_token"}) {
    EXPECT_EQ(
        refusal({{key, "!"}}),
        std::string("'!', which ") + key + " of " + config +
            " names, is ordinary text here: a user's text gives it, and as a special token it would be "
            "left out of answers; name a token that no text gives there, or add it to added_tokens with "
            "its id if that is meant");
  }
  document_["added_tokens"] = json::array({{{"id", 1}, {"content", "!"}, {"special", true}}});
  EXPECT_EQ(refusal({{"pad_token", "!"}}), "");
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
