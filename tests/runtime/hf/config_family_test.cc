// Every row of model/families.h through config.json: in, out and in again, and what the row does not have.
#include <functional>
#include <nlohmann/json.hpp>
#include <vector>

#include "model/families.h"
#include "runtime/hf/config_json.h"
#include "tests/runtime/hf/expect_equal.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

using nlohmann::json;

json sizes_of(const FamilyTraits& row) {
  return {{"model_type", std::string(row.model_type)},
          {"architectures", json::array({std::string(row.architecture)})},
          {"vocab_size", 100},
          {"hidden_size", 64},
          {"intermediate_size", 128},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2}};
}

json with(json config, const std::string& key, const json& value) {
  config[key] = value;
  return config;
}

ModelConfig parse(const json& config) {
  return parse_model_config(config.dump(), "F");
}

json rope_of(RopeKind kind) {
  switch (kind) {
    case RopeKind::kDefault:
      return {{"rope_type", "default"}, {"rope_theta", 5e5}};
    case RopeKind::kLinear:
      return {{"rope_type", "linear"}, {"rope_theta", 5e5}, {"factor", 2.5}};
    case RopeKind::kLlama3:
      return {{"rope_type", "llama3"},  {"rope_theta", 5e5},       {"factor", 8.0},
              {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 128}};
  }
  throw InternalError("no such rope kind");
}

// A file that says no more than it must, and one for everything that the row may say.
std::vector<json> configs_of(const FamilyTraits& row) {
  const json sizes = sizes_of(row);
  std::vector<json> out = {sizes};
  for (const RopeKind kind : row.rope_kinds) out.push_back(with(sizes, "rope_parameters", rope_of(kind)));
  for (const bool tied : {false, true}) out.push_back(with(sizes, "tie_word_embeddings", tied));
  for (const json& window : {json(), json(64)}) out.push_back(with(sizes, "sliding_window", window));
  out.push_back(with(with(sizes, "head_dim", 32), "rms_norm_eps", 3e-5));
  out.push_back(with(with(sizes, "bos_token_id", 1), "eos_token_id", {7, 9}));
  if (row.rope_layers == RopeLayers::kListed) {
    out.push_back(with(sizes, "no_rope_layer_interval", 2));
    out.push_back(with(sizes, "no_rope_layers", {0, 1, 0}));
    out.push_back(with(sizes, "no_rope_layers", {1, 1, 1}));
  }
  return out;
}

TEST(ConfigFamily, EveryRowReadsWhatItHasWritten) {
  for (const FamilyTraits& row : kFamilies) {
    for (const json& config : configs_of(row)) {
      SCOPED_TRACE(config.dump());
      const ModelConfig model = parse(config);
      EXPECT_EQ(model.family, row.family);
      EXPECT_EQ(model.qkv_bias, row.qkv_bias());
      const TempFolder folder;
      write_model_config(folder.path(), model);
      const std::string text = read_file(folder / "config.json");
      const json written = json::parse(text);
      EXPECT_EQ(written.at("model_type"), std::string(row.model_type));
      EXPECT_EQ(written.at("architectures"), json::array({std::string(row.architecture)}));
      for (const ConfigConstant& constant : row.constants)
        EXPECT_EQ(written.at(std::string(constant.key)), json::parse(constant.json)) << constant.key;
      const ModelConfig again = read_model_config(folder.path());
      expect_equal(again, model);
      write_model_config(folder.path(), again);
      EXPECT_EQ(read_file(folder / "config.json"), text);
    }
  }
}

TEST(ConfigFamily, AbsentKeysMeanTheRowsDefaults) {
  for (const FamilyTraits& row : kFamilies) {
    SCOPED_TRACE(row.model_type);
    const ModelConfig model = parse(sizes_of(row));
    EXPECT_EQ(model.max_position_embeddings, row.defaults.max_position_embeddings);
    EXPECT_EQ(model.rms_norm_eps, row.defaults.rms_norm_eps);
    EXPECT_EQ(model.rope.theta, row.defaults.rope_theta);
    EXPECT_EQ(model.tie_word_embeddings, row.defaults.tie_word_embeddings);
    EXPECT_EQ(model.head_dim, row.defaults.head_dim > 0 ? row.defaults.head_dim : 16);
    EXPECT_TRUE(model.layers_without_rope.empty());  // three layers, and each fourth has none
    EXPECT_EQ(model.sliding_window,
              row.window_layers == WindowLayers::kAll ? row.defaults.sliding_window : 0);
  }
}

TEST(ConfigFamily, OneOfTheTwoNamesIsEnoughAndTwoMustAgree) {
  for (const FamilyTraits& row : kFamilies) {
    SCOPED_TRACE(row.model_type);
    for (const char* name : {"model_type", "architectures"}) {
      json config = sizes_of(row);
      config.erase(name);
      EXPECT_EQ(parse(config).family, row.family);
    }
    for (const FamilyTraits& other : kFamilies) {
      if (&other == &row) continue;
      const json config = with(sizes_of(row), "architectures", sizes_of(other).at("architectures"));
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, "contradicts", data_error([&] { (void)parse(config); }));
    }
  }
}

TEST(ConfigFamily, AnUnknownNameIsAnsweredWithThoseOfAllRows) {
  const json sizes = sizes_of(kFamilies[0]);
  const std::string architecture =
      data_error([&] { (void)parse(with(sizes, "architectures", json::array({"GraniteForCausalLM"}))); });
  json by_type = with(sizes, "model_type", "granite");
  by_type.erase("architectures");
  const std::string type = data_error([&] { (void)parse(by_type); });
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "architectures: the architecture 'GraniteForCausalLM'",
                      architecture);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "model_type: the model type 'granite'", type);
  for (const FamilyTraits& row : kFamilies) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, std::string(row.architecture), architecture);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, std::string(row.model_type), type);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, std::string(row.multimodal_type), type);
  }
}

// Each asks for a form that no row has; a row that gets one is to be taken out of its line here.
TEST(ConfigFamily, WhatARowDoesNotHaveIsRefusedInItsName) {
  struct Case {
    const char* key;
    json value;
    const char* supported;
  };
  const std::vector<Case> cases = {
      {"mlp_bias", true, "only false"},
      {"use_post_norm", true, "only false"},
      {"hidden_act", "gelu", "silu"},
      {"attn_logit_softcapping", 50.0, "only 0"},
      {"embedding_multiplier", 12.0, "only 1"},
      {"logits_scaling", 8.0, "only 1"},
      {"residual_multiplier", 0.22, "only 1"},
      {"attention_multiplier", 0.5, "only 0.25"},
      {"no_rope_layers", {1, 0, 1}, "only 1"},
      {"layer_types", {"full_attention", "chunked_attention", "full_attention"}, "full_attention"},
      {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}}, "default"},
      {"rope_scaling", {{"rope_type", "longrope"}, {"factor", 2.0}}, "default"},
  };
  for (const FamilyTraits& row : kFamilies) {
    for (const Case& c : cases) {
      if (row.rope_layers == RopeLayers::kListed && std::string(c.key) == "no_rope_layers") continue;
      SCOPED_TRACE(std::string(row.model_type) + " " + c.key);
      const json sizes = with(sizes_of(row), "head_dim", 16);
      const std::string message = data_error([&] { (void)parse(with(sizes, c.key, c.value)); });
      EXPECT_EQ(message.rfind(std::string("F: ") + c.key, 0), 0U) << message;
      const std::string form = "is not supported in a model of type " + std::string(row.model_type);
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, form, message);
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, c.supported, message.substr(message.find(form)));
    }
    const bool norms = row.qk_norm != QkNorm::kNone;
    for (const char* key : {"qk_norm", "use_qk_norm", "qk_layernorm"}) {
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, norms ? "only true" : "only false",
                          data_error([&] { (void)parse(with(sizes_of(row), key, !norms)); }));
      EXPECT_EQ(parse(with(sizes_of(row), key, norms)).family, row.family);
    }
    const json biases = with(sizes_of(row), "qkv_bias", !row.qkv_bias());
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, row.qkv_bias() ? "only true" : "only false",
                        data_error([&] { (void)parse(biases); }));
    EXPECT_EQ(parse(with(sizes_of(row), "qkv_bias", row.qkv_bias())).qkv_bias, row.qkv_bias());
  }
}

// transformers' own words: Phi3Config takes a partly rotated head and longrope, which nothing here computes.
TEST(ConfigFamily, Phi3WithAPartlyRotatedHeadOrLongropeIsRefused) {
  const json phi3 = sizes_of(traits_of(Family::kPhi3));
  EXPECT_EQ(parse(with(phi3, "partial_rotary_factor", 1.0)).family, Family::kPhi3);
  EXPECT_EQ(parse(with(phi3, "original_max_position_embeddings", 16384)).rope.kind, RopeKind::kDefault);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "partial_rotary_factor: a partly rotated head",
                      data_error([&] { (void)parse(with(phi3, "partial_rotary_factor", 0.75)); }));
  const json in_dictionary = {{"rope_type", "default"}, {"partial_rotary_factor", 0.75}};
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "partial_rotary_factor: a partly rotated head",
                      data_error([&] { (void)parse(with(phi3, "rope_parameters", in_dictionary)); }));
  const json longrope = {{"type", "longrope"}, {"short_factor", {1, 1}}, {"long_factor", {2, 2}}};
  EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                      "the rope kind 'longrope' is not supported in a model of type phi3",
                      data_error([&] { (void)parse(with(phi3, "rope_scaling", longrope)); }));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "resid_pdrop",
                      data_error([&] { (void)parse(with(phi3, "resid_pdrop", 0.1)); }));
}

TEST(ConfigFamily, Qwen3HasHeadsOfItsOwnSizeAndNoBiases) {
  const json qwen3 = sizes_of(traits_of(Family::kQwen3));
  EXPECT_EQ(parse(qwen3).head_dim, 128);
  EXPECT_TRUE(parse(qwen3).norms_qk());
  EXPECT_EQ(parse(with(qwen3, "head_dim", 80)).head_dim, 80);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "attention_bias: 'true'",
                      data_error([&] { (void)parse(with(qwen3, "attention_bias", true)); }));
}

// 1 is a layer WITH rotary embedding.
TEST(ConfigFamily, SmolLm3NamesTheLayersThatRotate) {
  json smollm3 = sizes_of(traits_of(Family::kSmolLm3));
  smollm3["num_hidden_layers"] = 9;
  using Layers = std::vector<int64_t>;
  EXPECT_EQ(parse(smollm3).layers_without_rope, (Layers{3, 7}));
  EXPECT_EQ(parse(with(smollm3, "no_rope_layer_interval", 3)).layers_without_rope, (Layers{2, 5, 8}));
  const ModelConfig listed = parse(with(smollm3, "no_rope_layers", {1, 1, 0, 1, 0, 1, 1, 1, 1}));
  EXPECT_EQ(listed.layers_without_rope, (Layers{2, 4}));
  for (int64_t layer = 0; layer < 9; ++layer) EXPECT_EQ(listed.rotates(layer), layer != 2 && layer != 4);
  // The list goes before the interval, as in transformers.
  const json both = with(with(smollm3, "no_rope_layers", json(Layers(9, 1))), "no_rope_layer_interval", 2);
  EXPECT_TRUE(parse(both).layers_without_rope.empty());
  const auto refused = [&](const char* key, const json& value) {
    return data_error([&] { (void)parse(with(smollm3, key, value)); });
  };
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "has 2 numbers, and num_hidden_layers is 9",
                      refused("no_rope_layers", {1, 0}));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "must be a list of 0 and 1",
                      refused("no_rope_layers", {1, 1, 0, 1, 2, 1, 1, 1, 1}));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "must be a list of 0 and 1", refused("no_rope_layers", 4));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "no_rope_layer_interval", refused("no_rope_layer_interval", 0));
  // A window would be that of the layers without rotary embedding.
  const json window = with(smollm3, "sliding_window", 64);
  EXPECT_EQ(parse(window).sliding_window, 0);
  EXPECT_EQ(parse(with(window, "use_sliding_window", true)).sliding_window, 64);
  const json all_rotate =
      with(with(window, "use_sliding_window", true), "no_rope_layers", json(Layers(9, 1)));
  EXPECT_EQ(parse(all_rotate).sliding_window, 0);
}

// Mistral Small 3.1: the text model under text_config, some tokens and the vision tower beside it.
TEST(ConfigFamily, TheTextPartOfAModelOfMoreThanTextIsRead) {
  json text = sizes_of(traits_of(Family::kMistral));
  text.erase("architectures");
  text.update({{"head_dim", 32}, {"rope_theta", 1e9}, {"sliding_window", nullptr}});
  const json whole = {{"model_type", "mistral3"},
                      {"architectures", {"Mistral3ForConditionalGeneration"}},
                      {"bos_token_id", 1},
                      {"eos_token_id", 2},
                      {"vision_config", {{"hidden_act", "gelu"}, {"hidden_size", 1024}}},
                      {"text_config", text}};
  const ModelConfig model = parse(whole);
  json alone = text;
  alone.update({{"bos_token_id", 1}, {"eos_token_id", 2}});
  expect_equal(model, parse(alone));
  EXPECT_EQ(model.family, Family::kMistral);
  EXPECT_EQ(model.head_dim, 32);
  json without = whole;
  without.erase("model_type");  // the architecture is enough, and the text part may leave its type out
  without["text_config"].erase("model_type");
  expect_equal(parse(without), model);
  // A key of the text part goes before the same key beside it.
  json both = whole;
  both["text_config"]["eos_token_id"] = 7;
  EXPECT_EQ(parse(both).eos_ids, std::vector<int64_t>{7});
  // What is written is a text model.
  const TempFolder folder;
  write_model_config(folder.path(), model);
  EXPECT_EQ(json::parse(read_file(folder / "config.json")).at("model_type"), "mistral");
  expect_equal(read_model_config(folder.path()), model);

  const auto refused = [&](const std::function<void(json&)>& change) {
    json config = whole;
    change(config);
    return data_error([&] { (void)parse(config); });
  };
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "F: text_config: is missing",
                      refused([](json& c) { c.erase("text_config"); }));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "F: text_config: model_type: the model type 'ministral3'",
                      refused([](json& c) { c["text_config"]["model_type"] = "ministral3"; }));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "has a text part of type mistral here, not llama",
                      refused([](json& c) { c["text_config"]["model_type"] = "llama"; }));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "F: quantization_config", refused([](json& c) {
                        c["quantization_config"] = {{"quant_method", "fp8"}};
                      }));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "F: text_config: hidden_size",
                      refused([](json& c) { c["text_config"].erase("hidden_size"); }));
}

}  // namespace
}  // namespace pesc
