#include "runtime/export/transformers_tokenizer.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "ops/core/check.h"

namespace pesc {
namespace {

using nlohmann::json;

// tokenizer.json of Qwen2.5, but for all but one of its added tokens.
json of_qwen2() {
  return parse_tokenizer_steps(R"JSON({
  "version": "1.0", "truncation": null, "padding": null,
  "added_tokens": [{"id": 2, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true}],
  "normalizer": {"type": "NFC"},
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex":
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
  "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
  "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
            "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}})JSON",
                               "tokenizer.json");
}

TEST(TransformersTokenizer, QwensOwnFileHasTheStepsOfItsClass) {
  const json file = of_qwen2();
  EXPECT_FALSE(file["model"].contains("vocab"));
  EXPECT_FALSE(file["model"].contains("merges"));
  EXPECT_TRUE(has_steps_of_qwen2(file));
  EXPECT_FALSE(adds_prefix_space(file));
  EXPECT_FALSE(has_steps_of_qwen2(json::object()));
}

TEST(TransformersTokenizer, WhateverStepDiffersItIsSeen) {
  const std::vector<std::pair<std::string, json>> changes = {
      {"/normalizer", nullptr},
      {"/normalizer/type", "NFKC"},
      {"/pre_tokenizer", nullptr},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\p{N}{1,3}"},
      {"/pre_tokenizer/pretokenizers/0/pattern", {{"String", " "}}},
      {"/pre_tokenizer/pretokenizers/0/behavior", "Removed"},
      {"/pre_tokenizer/pretokenizers/0/invert", true},
      {"/pre_tokenizer/pretokenizers/1/add_prefix_space", true},
      {"/pre_tokenizer/pretokenizers/1/use_regex", true},
      {"/pre_tokenizer/pretokenizers/1", {{"type", "Digits"}}},
      {"/pre_tokenizer/pretokenizers/2", {{"type", "Digits"}}},
      {"/decoder", nullptr},
      {"/decoder/type", "Fuse"},
      {"/model/type", "Unigram"},
      {"/model/unk_token", "a"},
      {"/model/end_of_word_suffix", "</w>"},
      {"/model/continuing_subword_prefix", "##"},
      {"/model/byte_fallback", true},
      {"/model/fuse_unk", true},
      {"/model/ignore_merges", true},
      {"/model/dropout", 0.5},
      {"/added_tokens", json::array()},
      {"/added_tokens/0/special", false},
      {"/added_tokens/0/normalized", true},
      {"/added_tokens/0/lstrip", true}};
  for (const auto& [path, value] : changes) {
    json file = of_qwen2();
    file[json::json_pointer(path)] = value;
    EXPECT_FALSE(has_steps_of_qwen2(file)) << path;
  }
}

TEST(TransformersTokenizer, ASpaceBeforeTheTextIsSeen) {
  json file = of_qwen2();
  file["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}};
  EXPECT_TRUE(adds_prefix_space(file));
}

TEST(TransformersTokenizer, WhatIsNoJsonIsRefused) {
  EXPECT_THROW((void)parse_tokenizer_steps("{", "tokenizer.json"), DataError);
}

}  // namespace
}  // namespace pesc
