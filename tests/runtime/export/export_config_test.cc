#include "runtime/export/export_config.h"

#include <gtest/gtest.h>

#include "runtime/export/python_files.h"
#include "runtime/hf/config_json.h"
#include "tests/runtime/export/small_run.h"

namespace pesc::testing {
namespace {

using nlohmann::json;

ExportModel small_export(Family family = Family::kLlama, TrainMode mode = TrainMode::kPesc) {
  ExportModel m;
  m.model = small_model(family);
  m.pesc = small_pesc(mode);
  m.stops = {2, 7};
  return m;
}

TEST(HfConfig, OfAdaptersHasAModelTypeOfItsOwn) {
  for (const FamilyTraits& traits : kFamilies) {
    const json c = json::parse(hf_config_text(small_export(traits.family), DType::kBF16));
    const std::string stem = "Pesc" + class_stem(traits);
    EXPECT_EQ(c["model_type"], "pesc_" + std::string(traits.model_type));
    EXPECT_EQ(c["architectures"], json::array({stem + "ForCausalLM"}));
    EXPECT_EQ(c["auto_map"]["AutoConfig"], "configuration_pesc." + stem + "Config");
    EXPECT_EQ(c["auto_map"]["AutoModel"], "modeling_pesc." + stem + "Model");
    EXPECT_EQ(c["auto_map"]["AutoModelForCausalLM"], "modeling_pesc." + stem + "ForCausalLM");
    EXPECT_EQ(c["adapter_experts"], 4);
    EXPECT_EQ(c["adapter_topk"], 2);
    EXPECT_EQ(c["adapter_dim"], 5);
    EXPECT_EQ(c["adapter_scaling"], 0.25);
    EXPECT_EQ(c["dtype"], "bfloat16");
    EXPECT_EQ(c["eos_token_id"], json::array({2, 7}));
    // vLLM takes a model with one of these for one with experts of its own form.
    for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"})
      EXPECT_FALSE(c.contains(key)) << key;
  }
}

TEST(HfConfig, OfADenseModelIsTheFamilys) {
  for (const TrainMode mode : {TrainMode::kLora, TrainMode::kFull}) {
    const ExportModel m = small_export(Family::kQwen2, mode);
    const std::string text = hf_config_text(m, DType::kF32);
    const json c = json::parse(text);
    EXPECT_EQ(c["model_type"], "qwen2");
    EXPECT_FALSE(c.contains("auto_map"));
    EXPECT_FALSE(c.contains("adapter_experts"));
    const ModelConfig again = parse_model_config(text, "config.json");
    EXPECT_EQ(again.hidden_size, m.model.hidden_size);
    EXPECT_EQ(again.eos_ids, m.stops);
  }
}

TEST(HfConfig, KeepsWhatTheBaseSays) {
  ExportModel m = small_export(Family::kQwen2, TrainMode::kLora);
  m.model.sliding_window = 32;
  m.model.rope.theta = 5e5;
  m.base_config = {{"sliding_window", 32},
                   {"use_sliding_window", true},
                   {"max_window_layers", 1},
                   {"rope_parameters", {{"rope_theta", 5e5}, {"rope_type", "default"}}},
                   {"a_key_of_tomorrow", "kept"},
                   {"_name_or_path", "/home"},
                   {"transformers_version", "9"},
                   {"torch_dtype", "bfloat16"},
                   {"eos_token_id", 2}};
  const json c = json::parse(hf_config_text(m, DType::kF32));
  EXPECT_EQ(c["sliding_window"], 32);
  EXPECT_EQ(c["use_sliding_window"], true);
  EXPECT_EQ(c["max_window_layers"], 1);
  EXPECT_EQ(c["a_key_of_tomorrow"], "kept");
  EXPECT_EQ(c["torch_dtype"], "float32");
  EXPECT_EQ(c["eos_token_id"], json::array({2, 7}));
  // transformers 4 would take the usual theta where it stands in rope_parameters alone.
  EXPECT_EQ(c["rope_theta"], 5e5);
  EXPECT_EQ(c["rope_parameters"]["rope_theta"], 5e5);
  EXPECT_FALSE(c.contains("_name_or_path") || c.contains("transformers_version"));
}

TEST(CamelidaeConfig, HasThePublishedKeys) {
  const json c = json::parse(camelidae_config_text(small_export(), DType::kBF16));
  EXPECT_EQ(c["model_type"], "llama");
  EXPECT_EQ(c["architectures"], json::array({"LlamaForCausalLM"}));
  EXPECT_EQ(c["auto_map"]["AutoConfig"], "configuration_camelidae.CamelidaeConfig");
  EXPECT_EQ(c["auto_map"]["AutoModelForCausalLM"], "modeling_camelidae.LlamaForCausalLM");
  EXPECT_EQ(c["num_experts"], 4);
  EXPECT_EQ(c["topk"], 2);
  EXPECT_EQ(c["adapter_dim"], 5);
  EXPECT_EQ(c["moe_scaling"], 0.25);
  EXPECT_EQ(c["output_router_logits"], false);
  EXPECT_TRUE(c.contains("moe_dtype"));
  EXPECT_EQ(c["torch_dtype"], "bfloat16");
}

TEST(CamelidaeConfig, IsRefusedWhereThePublishedCodeComputesAnotherModel) {
  EXPECT_EQ(why_not_camelidae(small_model(), small_pesc()), "");
  const auto refused = [](const char* word, auto change) {
    ModelConfig model = small_model();
    PescConfig pesc = small_pesc();
    change(model, pesc);
    const std::string why = why_not_camelidae(model, pesc);
    EXPECT_NE(why.find(word), std::string::npos) << word << ": " << why;
  };
  refused("rope_theta, which is 500000", [](ModelConfig& m, PescConfig&) { m.rope.theta = 5e5; });
  refused("rope_scaling", [](ModelConfig& m, PescConfig&) { m.rope.kind = RopeKind::kLinear; });
  refused("head_dim, which is 8", [](ModelConfig& m, PescConfig&) { m.head_dim = 8; });
  refused("biases", [](ModelConfig& m, PescConfig&) { m.qkv_bias = true; });
  refused("tie_word_embeddings", [](ModelConfig& m, PescConfig&) { m.tie_word_embeddings = true; });
  refused("mistral", [](ModelConfig& m, PescConfig&) { m.family = Family::kMistral; });
  refused("train.mode PESC", [](ModelConfig&, PescConfig& p) { p.mode = TrainMode::kLora; });
}

TEST(GenerationConfig, AnswersAsGenerateDoes) {
  ExportModel m = small_export();
  m.generate.max_new_tokens = 77;
  json c = json::parse(generation_config_text(m));
  EXPECT_EQ(c["eos_token_id"], json::array({2, 7}));
  EXPECT_EQ(c["bos_token_id"], 1);
  EXPECT_EQ(c["do_sample"], false);
  EXPECT_EQ(c["max_new_tokens"], 77);
  EXPECT_FALSE(c.contains("temperature"));
  m.generate.temperature = 0.7;
  m.generate.top_p = 0.9;
  c = json::parse(generation_config_text(m));
  EXPECT_EQ(c["do_sample"], true);
  EXPECT_EQ(c["temperature"], 0.7);
  EXPECT_EQ(c["top_p"], 0.9);
  EXPECT_EQ(c["top_k"], 0);
}

TEST(AdapterConfig, IsPeftsLora) {
  json c = json::parse(adapter_config_text(small_model(), small_pesc(), "models/base"));
  EXPECT_EQ(c["peft_type"], "LORA");
  EXPECT_EQ(c["task_type"], "CAUSAL_LM");
  EXPECT_EQ(c["base_model_name_or_path"], "models/base");
  EXPECT_EQ(c["r"], 3);
  EXPECT_EQ(c["lora_alpha"].dump(), "7");
  EXPECT_EQ(c["target_modules"], json::array({"down_proj", "gate_proj", "q_proj", "v_proj"}));
  EXPECT_EQ(c["modules_to_save"], json::array({"moe_adapter"}));
  EXPECT_EQ(c["bias"], "none");
  EXPECT_EQ(c["rank_pattern"], json::object());  // peft_round_trip_test.cc has one
  c = json::parse(adapter_config_text(small_model(), small_pesc(TrainMode::kLora), "x"));
  EXPECT_TRUE(c["modules_to_save"].is_null());
}

TEST(PythonFiles, AreThoseOfTheFamily) {
  ASSERT_EQ(python_files().size(), 2U);
  for (const PythonFile& file : python_files()) {
    for (const FamilyTraits& traits : kFamilies) {
      const std::string text = python_text(file, traits);
      const std::string type(traits.model_type), stem = class_stem(traits);
      EXPECT_NE(text.find("from transformers.models." + type + "."), std::string::npos) << type;
      EXPECT_NE(text.find("class Pesc" + stem), std::string::npos) << type;
      EXPECT_TRUE(type == "llama" || text.find("lama") == std::string::npos) << type;
    }
  }
}

}  // namespace
}  // namespace pesc::testing
