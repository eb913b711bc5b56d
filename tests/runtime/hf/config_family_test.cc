// Every row of model/families.h through config.json: in, out and in again, and what the row does not have.
#include <nlohmann/json.hpp>

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
      data_error([&] { (void)parse(with(sizes, "architectures", json::array({"Phi3ForCausalLM"}))); });
  json by_type = with(sizes, "model_type", "phi3");
  by_type.erase("architectures");
  const std::string type = data_error([&] { (void)parse(by_type); });
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "architectures: the architecture 'Phi3ForCausalLM'",
                      architecture);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "model_type: the model type 'phi3'", type);
  for (const FamilyTraits& row : kFamilies) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, std::string(row.architecture), architecture);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, std::string(row.model_type), type);
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
      {"qk_norm", true, "only false"},
      {"use_post_norm", true, "only false"},
      {"hidden_act", "gelu", "silu"},
      {"attn_logit_softcapping", 50.0, "only 0"},
      {"embedding_multiplier", 12.0, "only 1"},
      {"logits_scaling", 8.0, "only 1"},
      {"residual_multiplier", 0.22, "only 1"},
      {"attention_multiplier", 0.5, "only 0.25"},
      {"no_rope_layers", {1, 0, 1}, "only 1"},
      {"layer_types", {"full_attention", "chunked_attention", "full_attention"}, "full_attention"},
      {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}}, "default, linear, llama3"},
  };
  for (const FamilyTraits& row : kFamilies) {
    for (const Case& c : cases) {
      SCOPED_TRACE(std::string(row.model_type) + " " + c.key);
      const std::string message = data_error([&] { (void)parse(with(sizes_of(row), c.key, c.value)); });
      EXPECT_EQ(message.rfind(std::string("F: ") + c.key, 0), 0U) << message;
      const std::string form = "is not supported in a model of type " + std::string(row.model_type);
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, form, message);
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, c.supported, message.substr(message.find(form)));
    }
    const json biases = with(sizes_of(row), "qkv_bias", !row.qkv_bias());
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, row.qkv_bias() ? "only true" : "only false",
                        data_error([&] { (void)parse(biases); }));
    EXPECT_EQ(parse(with(sizes_of(row), "qkv_bias", row.qkv_bias())).qkv_bias, row.qkv_bias());
  }
}

}  // namespace
}  // namespace pesc
