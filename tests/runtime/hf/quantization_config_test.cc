// quantization_config as published folders have it: what is read, which modules stay plain, what is refused.
#include "runtime/hf/quantization_config.h"

#include <nlohmann/json.hpp>

#include "runtime/hf/config_json.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

using nlohmann::json;

json with_quantization(const json& quantization) {
  return {{"model_type", "llama"},
          {"vocab_size", 64},
          {"hidden_size", 64},
          {"intermediate_size", 96},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"max_position_embeddings", 128},
          {"tie_word_embeddings", false},
          {"quantization_config", quantization}};
}
std::optional<QuantizedBase> read(const json& quantization) {
  return parse_model_config(with_quantization(quantization).dump(), "F").quantized;
}

// llm-compressor's FP8_DYNAMIC.
json compressed_tensors() {
  return json::parse(R"({
    "config_groups": {"group_0": {
      "input_activations": {"actorder": null, "block_structure": null, "dynamic": true, "group_size": null,
                            "num_bits": 8, "strategy": "token", "symmetric": true, "type": "float"},
      "output_activations": null, "targets": ["Linear"],
      "weights": {"actorder": null, "block_structure": null, "dynamic": false, "group_size": null,
                  "num_bits": 8, "observer": "minmax", "strategy": "channel", "symmetric": true, "type": "float"}}},
    "format": "float-quantized", "ignore": ["lm_head"], "kv_cache_scheme": null,
    "quant_method": "compressed-tensors", "quantization_status": "compressed", "sparsity_config": {},
    "transform_config": {}})");
}
json fp8() {
  return {{"activation_scheme", "dynamic"},
          {"fmt", "e4m3"},
          {"quant_method", "fp8"},
          {"weight_block_size", {128, 128}}};
}
json fbgemm() {
  return {{"quant_method", "fbgemm_fp8"},
          {"activation_scale_ub", 1200.0},
          {"modules_to_not_convert", json::array()}};
}
json bitsandbytes() {
  return {{"quant_method", "bitsandbytes"},
          {"load_in_4bit", true},
          {"load_in_8bit", false},
          {"_load_in_4bit", true},
          {"bnb_4bit_quant_type", "nf4"},
          {"bnb_4bit_use_double_quant", true},
          {"bnb_4bit_quant_storage", "uint8"},
          {"bnb_4bit_compute_dtype", "bfloat16"},
          {"llm_int8_skip_modules", nullptr}};
}
json changed(json from, const std::string& pointer, const json& value) {
  from[json::json_pointer(pointer)] = value;
  return from;
}

TEST(QuantizationConfig, PublishedOnesAreRead) {
  const std::string weights = "/config_groups/group_0/weights";
  json blocks = changed(compressed_tensors(), weights + "/strategy", "block");
  blocks = changed(blocks, weights + "/block_structure", {128, 128});
  json single = bitsandbytes();
  single.erase("bnb_4bit_use_double_quant");
  json old = bitsandbytes();
  old.erase("quant_method");
  const std::vector<std::pair<json, FrozenFormat>> all = {
      {compressed_tensors(), FrozenFormat::kFP8},
      {changed(compressed_tensors(), weights + "/strategy", "tensor"), FrozenFormat::kFP8},
      {blocks, FrozenFormat::kFP8Blocks},
      {changed(blocks, weights + "/block_structure", "128x128"), FrozenFormat::kFP8Blocks},
      {fbgemm(), FrozenFormat::kFP8},
      {fp8(), FrozenFormat::kFP8Blocks},
      {bitsandbytes(), FrozenFormat::kNF4},
      {single, FrozenFormat::kNF4Single},
      {old, FrozenFormat::kNF4}};
  for (size_t i = 0; i < all.size(); ++i) {
    const std::optional<QuantizedBase> base = read(all[i].first);
    ASSERT_TRUE(base.has_value()) << i;
    EXPECT_EQ(base->format, all[i].second) << i;
    EXPECT_TRUE(base->plain.empty()) << i;
  }
  json plain = with_quantization(nullptr);
  EXPECT_FALSE(parse_model_config(plain.dump(), "F").quantized.has_value());
  plain.erase("quantization_config");
  plain["compression_config"] = compressed_tensors();
  EXPECT_EQ(parse_model_config(plain.dump(), "F").quantized.value().format, FrozenFormat::kFP8);
}

TEST(QuantizationConfig, ListedModulesArePlain) {
  const auto plain = [](const json& from, const char* key, const json& list) {
    json with = from;
    with[key] = list;
    const auto base = read(with);
    return base ? base->plain : std::vector<int64_t>{-1};
  };
  constexpr int64_t kO = 3, kDown = 6;
  using Plain = std::vector<int64_t>;
  EXPECT_EQ(plain(compressed_tensors(), "ignore", {"lm_head", "model.layers.1.mlp.down_proj"}),
            Plain{7 + kDown});
  EXPECT_EQ(plain(compressed_tensors(), "ignore", {"re:.*lm_head", "re:.*o_proj$"}), (Plain{kO, 7 + kO}));
  EXPECT_EQ(plain(compressed_tensors(), "ignore", {"re:o_proj"}), Plain{});  // from the module's beginning on
  EXPECT_EQ(plain(fbgemm(), "modules_to_not_convert", {"model.layers.0.self_attn", "model.layers.1.mlp"}),
            (Plain{0, 1, 2, 3, 7 + 4, 7 + 5, 7 + 6}));
  EXPECT_EQ(plain(fp8(), "modules_to_not_convert", {"model.layers.1"}), (Plain{7, 8, 9, 10, 11, 12, 13}));
  EXPECT_EQ(plain(fp8(), "modules_to_not_convert", {"mlp.gate", "layers.11", "down"}), Plain{});
  EXPECT_EQ(plain(bitsandbytes(), "llm_int8_skip_modules", {"lm_head", "down_proj"}),
            (Plain{kDown, 7 + kDown}));
  // The text part of a larger model, under either of its names.
  EXPECT_EQ(plain(fp8(), "modules_to_not_convert", {"model.language_model.layers.0.self_attn.o_proj"}),
            Plain{kO});
  EXPECT_EQ(plain(fp8(), "modules_to_not_convert",
                  {"language_model.model.layers.0.self_attn.o_proj", "vision_tower"}),
            Plain{kO});
  // Nothing is quantised then.
  EXPECT_EQ(plain(fp8(), "modules_to_not_convert", {"model.layers"}), Plain{-1});
}

TEST(QuantizationConfig, WhatIsNotReadIsRefusedByName) {
  const std::string group = "/config_groups/group_0", weights = group + "/weights";
  struct Bad {
    json config;
    std::vector<const char*> words;
  };
  json two = compressed_tensors();
  two["config_groups"]["group_1"] = two["config_groups"]["group_0"];
  json no_block = fp8();
  no_block.erase("weight_block_size");
  const std::vector<Bad> all = {
      {{{"quant_method", "gptq"}, {"bits", 4}},
       {"quant_method: 'gptq' is not supported", "or the unquantised model"}},
      {{{"quant_method", "awq"}}, {"'awq'"}},
      {{{"quant_method", "gguf"}}, {"'gguf'"}},
      {{{"quant_method", "mxfp4"}}, {"'mxfp4'"}},
      {{{"quant_method", "torchao"}}, {"'torchao'"}},
      {{{"bits", 4}}, {"quant_method: is missing"}},
      {changed(bitsandbytes(), "/load_in_8bit", true), {"load_in_8bit: true is not supported"}},
      {changed(bitsandbytes(), "/bnb_4bit_quant_type", "fp4"), {"bnb_4bit_quant_type: 'fp4'"}},
      {changed(bitsandbytes(), "/bnb_4bit_quant_storage", "bfloat16"),
       {"bnb_4bit_quant_storage: 'bfloat16'"}},
      {{{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}}, {"bnb_4bit_quant_type: 'fp4'"}},
      {{{"quant_method", "bitsandbytes"}}, {"load_in_4bit: must be true"}},
      {changed(fp8(), "/weight_block_size", {64, 64}), {"weight_block_size: '[64,64]'", "[128, 128]"}},
      {no_block, {"weight_block_size: an absent one"}},
      {changed(fp8(), "/fmt", "e5m2"), {"fmt: 'e5m2'"}},
      {changed(fp8(), "/activation_scheme", "static"), {"activation_scheme: 'static'"}},
      {changed(compressed_tensors(), "/format", "pack-quantized"), {"format: 'pack-quantized'"}},
      {changed(compressed_tensors(), weights + "/type", "int"), {"weights: type: 'int'"}},
      {changed(compressed_tensors(), weights + "/num_bits", 4), {"num_bits: '4'"}},
      {changed(compressed_tensors(), weights + "/strategy", "group"), {"strategy: 'group'"}},
      {changed(compressed_tensors(), weights + "/symmetric", false), {"symmetric: false"}},
      {changed(compressed_tensors(), group + "/targets", {"re:.*q_proj"}), {"targets: only [\"Linear\"]"}},
      {changed(compressed_tensors(), group + "/input_activations/dynamic", false), {"dynamic: false"}},
      {changed(compressed_tensors(), "/kv_cache_scheme", {{"num_bits", 8}}), {"kv_cache_scheme: an object"}},
      {changed(compressed_tensors(), "/ignore", {"re:(["}), {"ignore: 're:(['", "is no regular expression"}},
      {changed(compressed_tensors(), "/ignore", {"re:(.+)+[XYZ]"}), {"takes too many steps"}},
      {two, {"config_groups: has 2 groups"}},
  };
  for (const Bad& bad : all) {
    const std::string message = data_error([&] { (void)read(bad.config); });
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "F: quantization_config", message) << bad.config;
    for (const char* word : bad.words)
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, word, message) << bad.config;
  }
}

}  // namespace
}  // namespace pesc
