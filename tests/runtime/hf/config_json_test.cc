// config.json in the words of old and new checkpoints, what is refused and how it says so, and writing.
#include "runtime/hf/config_json.h"

#include <nlohmann/json.hpp>

#include "tests/runtime/hf/expect_equal.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

using nlohmann::json;

json base(const std::string& type = "llama") {
  return {{"model_type", type},       {"vocab_size", 100},      {"hidden_size", 64},
          {"intermediate_size", 128}, {"num_hidden_layers", 3}, {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"rms_norm_eps", 1e-5},   {"max_position_embeddings", 512}};
}

json with(json config, const std::string& key, const json& value) {
  config[key] = value;
  return config;
}

ModelConfig parse(const json& config) {
  return parse_model_config(config.dump(), "F");
}

TEST(ConfigJson, ReadsTheReferenceCases) {
  const std::string goldens = std::string(PESC_SOURCE_DIR) + "/tests/goldens/";
  const ModelConfig llama = read_model_config(goldens + "llama-gqa");
  EXPECT_EQ(llama.family, Family::kLlama);
  EXPECT_EQ(llama.vocab_size, 96);
  EXPECT_EQ(llama.hidden_size, 64);
  EXPECT_EQ(llama.intermediate_size, 112);
  EXPECT_EQ(llama.num_hidden_layers, 2);
  EXPECT_EQ(llama.num_attention_heads, 4);
  EXPECT_EQ(llama.num_key_value_heads, 2);
  EXPECT_EQ(llama.head_dim, 16);
  EXPECT_EQ(llama.max_position_embeddings, 256);
  EXPECT_EQ(llama.rms_norm_eps, 1e-5);
  EXPECT_EQ(llama.rope.kind, RopeKind::kDefault);
  EXPECT_EQ(llama.rope.theta, 10000.0);
  EXPECT_FALSE(llama.qkv_bias);
  EXPECT_FALSE(llama.tie_word_embeddings);
  EXPECT_EQ(llama.bos_id, 1);
  EXPECT_EQ(llama.eos_ids, std::vector<int64_t>{2});
  EXPECT_EQ(llama.sliding_window, 0);

  const ModelConfig mistral = read_model_config(goldens + "mistral-top1");
  EXPECT_EQ(mistral.family, Family::kMistral);
  EXPECT_EQ(mistral.num_key_value_heads, 4);
  EXPECT_EQ(mistral.sliding_window, 0);

  const ModelConfig qwen = read_model_config(goldens + "qwen2-bias-tied");
  EXPECT_EQ(qwen.family, Family::kQwen2);
  EXPECT_TRUE(qwen.qkv_bias);
  EXPECT_TRUE(qwen.tie_word_embeddings);
  EXPECT_EQ(qwen.head_dim, 16);
  EXPECT_EQ(qwen.bos_id, -1);
  EXPECT_TRUE(qwen.eos_ids.empty());
}

TEST(ConfigJson, AbsentKeysMeanWhatTheyMeanInTransformers) {
  json config = base();
  config.erase("num_key_value_heads");
  config.erase("rms_norm_eps");
  config.erase("max_position_embeddings");
  const ModelConfig m = parse(config);
  EXPECT_EQ(m.num_key_value_heads, 4);
  EXPECT_EQ(m.head_dim, 16);
  EXPECT_EQ(m.rms_norm_eps, 1e-6);
  EXPECT_EQ(m.max_position_embeddings, 2048);
  EXPECT_EQ(m.rope.theta, 10000.0);
  EXPECT_EQ(m.bos_id, -1);
  EXPECT_FALSE(m.tie_word_embeddings);
  EXPECT_EQ(parse(with(base(), "head_dim", 32)).head_dim, 32);
  EXPECT_EQ(parse(with(base(), "head_dim", nullptr)).head_dim, 16);
  EXPECT_EQ(parse(with(base(), "eos_token_id", {7, 9})).eos_ids, (std::vector<int64_t>{7, 9}));
  json by_architecture = with(base(), "architectures", {"Qwen2ForCausalLM"});
  by_architecture.erase("model_type");
  EXPECT_EQ(parse(by_architecture).family, Family::kQwen2);
}

// transformers: absent is the default of the configuration class, null is num_attention_heads.
TEST(ConfigJson, AbsentKeyValueHeadsAreTheDefaultOfTheFamily) {
  const std::vector<std::pair<const char*, int64_t>> defaults = {
      {"llama", 64}, {"mistral", 8}, {"qwen2", 32}, {"qwen3", 32}, {"phi3", 64}, {"smollm3", 4}};
  ASSERT_EQ(defaults.size(), kFamilies.size());
  for (const auto& [family, heads] : defaults) {
    json config = with(with(base(family), "num_attention_heads", 64), "head_dim", 2);
    config.erase("num_key_value_heads");
    EXPECT_EQ(parse(config).num_key_value_heads, heads) << family;
    config["num_key_value_heads"] = nullptr;
    EXPECT_EQ(parse(config).num_key_value_heads, 64) << family;
    config["num_key_value_heads"] = 16;
    EXPECT_EQ(parse(config).num_key_value_heads, 16) << family;
  }
  json small = base("mistral");  // of 4 heads
  small.erase("num_key_value_heads");
  try {
    (void)parse(small);
    FAIL() << "a number that does not divide the heads was taken";
  } catch (const DataError& error) {
    const std::string said = error.what();
    for (const char* words : {"num_key_value_heads",
                              "is missing, and 8, the default of mistral, does not divide "
                              "num_attention_heads 4",
                              "write the number"})
      EXPECT_NE(said.find(words), std::string::npos) << said;
  }
}

TEST(ConfigJson, RopeIsReadInOldAndNewWords) {
  EXPECT_EQ(parse(with(base(), "rope_theta", 500000)).rope.theta, 500000.0);
  EXPECT_EQ(parse(with(base(), "rope_scaling", nullptr)).rope.kind, RopeKind::kDefault);
  for (const char* type_key : {"type", "rope_type"}) {
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
      const RopeConfig rope = parse(with(base(), key, {{type_key, "linear"}, {"factor", 2.5}})).rope;
      EXPECT_EQ(rope.kind, RopeKind::kLinear);
      EXPECT_EQ(rope.factor, 2.5);
      EXPECT_EQ(rope.theta, 10000.0);
    }
  }
  const json llama3 = {{"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 128},
                       {"rope_type", "llama3"}};
  const RopeConfig old_words = parse(with(with(base(), "rope_scaling", llama3), "rope_theta", 5e5)).rope;
  const RopeConfig new_words = parse(with(base(), "rope_parameters", with(llama3, "rope_theta", 5e5))).rope;
  for (const RopeConfig& rope : {old_words, new_words}) {
    EXPECT_EQ(rope.kind, RopeKind::kLlama3);
    EXPECT_EQ(rope.theta, 5e5);
    EXPECT_EQ(rope.factor, 8.0);
    EXPECT_EQ(rope.low_freq_factor, 1.0);
    EXPECT_EQ(rope.high_freq_factor, 4.0);
    EXPECT_EQ(rope.original_max_positions, 128);
  }
}

TEST(ConfigJson, TheSlidingWindowFollowsTheFamily) {
  json mistral = with(base("mistral"), "sliding_window", 128);
  EXPECT_EQ(parse(mistral).sliding_window, 128);
  EXPECT_EQ(parse(with(mistral, "sliding_window", nullptr)).sliding_window, 0);
  EXPECT_EQ(parse(base("mistral")).sliding_window, 4096);  // the family's default
  json qwen = with(base("qwen2"), "sliding_window", 64);
  qwen["max_window_layers"] = 2;
  EXPECT_EQ(parse(qwen).sliding_window, 0);
  qwen["use_sliding_window"] = false;
  EXPECT_EQ(parse(qwen).sliding_window, 0);
  qwen["use_sliding_window"] = true;
  EXPECT_EQ(parse(qwen).sliding_window, 64);
  EXPECT_EQ(parse(with(qwen, "max_window_layers", 3)).sliding_window, 0);
  const json full = {"full_attention", "full_attention", "full_attention"};
  EXPECT_EQ(parse(with(qwen, "layer_types", full)).sliding_window, 0);
  const json mixed = {"full_attention", "sliding_attention", "full_attention"};
  EXPECT_EQ(parse(with(qwen, "layer_types", mixed)).sliding_window, 64);
}

TEST(ConfigJson, RefusalsNameFileAndKey) {
  struct Case {
    json config;
    std::vector<std::string> says;
  };
  const auto rope = [](const json& value) { return with(base(), "rope_scaling", value); };
  const json llama3 = {{"factor", 8.0},
                       {"low_freq_factor", 4.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 128},
                       {"type", "llama3"}};
  std::vector<Case> cases = {
      {with(base(), "model_type", "mixtral"), {"model_type", "'mixtral'", "llama, mistral, mistral3, qwen2"}},
      {with(base(), "model_type", 3), {"model_type", "string"}},
      {with(base(), "model_type", nullptr), {"model_type", "missing"}},
      {with(base(), "architectures", {"LlamaForSequenceClassification"}),
       {"architectures", "'LlamaForSequenceClassification'", "Qwen2ForCausalLM"}},
      {with(base(), "architectures", {"MistralForCausalLM"}), {"contradicts"}},
      {with(base(), "architectures", "LlamaForCausalLM"), {"architectures", "list"}},
      {with(base(), "hidden_size", 0), {"hidden_size", "0"}},
      {with(base(), "hidden_size", -64), {"hidden_size", "-64"}},
      {with(base(), "hidden_size", 64.0), {"hidden_size", "64.0"}},
      {with(base(), "hidden_size", "64"), {"hidden_size"}},
      {with(base(), "hidden_size", 2147483648), {"hidden_size", "2147483648"}},
      {with(base(), "vocab_size", 18446744073709551615U), {"vocab_size"}},
      {with(base(), "vocab_size", nullptr), {"vocab_size", "missing"}},
      {with(base(), "vocab_size", json::array({1})), {"vocab_size", "a list"}},
      {with(base(), "num_hidden_layers", true), {"num_hidden_layers", "true"}},
      {with(base(), "num_key_value_heads", 3), {"num_key_value_heads", "3", "4"}},
      {with(base(), "num_key_value_heads", 0), {"num_key_value_heads"}},
      {with(base(), "num_key_value_heads", 8), {"num_key_value_heads", "8"}},
      {with(base(), "hidden_size", 66), {"num_attention_heads", "66", "head_dim"}},
      {with(base(), "head_dim", 15), {"head_dim", "odd"}},
      {with(base(), "rms_norm_eps", 0), {"rms_norm_eps"}},
      {with(base(), "rms_norm_eps", -1e-5), {"rms_norm_eps"}},
      {with(base(), "hidden_act", "gelu"), {"hidden_act", "'gelu'", "silu"}},
      {with(base(), "attention_bias", true), {"attention_bias"}},
      {with(base(), "mlp_bias", true), {"mlp_bias"}},
      {with(base(), "attention_bias", 1), {"attention_bias", "true or false"}},
      {with(base(), "tie_word_embeddings", "yes"), {"tie_word_embeddings"}},
      {with(base(), "quantization_config", {{"quant_method", "gptq"}}), {"quantization_config"}},
      {with(base(), "partial_rotary_factor", 0.5), {"partial_rotary_factor"}},
      {with(base(), "eos_token_id", 100), {"eos_token_id", "100"}},
      {with(base(), "eos_token_id", {1, -2}), {"eos_token_id", "-2"}},
      {with(base(), "eos_token_id", "2"), {"eos_token_id"}},
      {with(base(), "bos_token_id", -1), {"bos_token_id"}},
      {with(base(), "rope_theta", 0), {"rope_theta"}},
      {with(base(), "rope_theta", "10000"), {"rope_theta"}},
      {with(base(), "logits_scaling", 8), {"logits_scaling", "'8'", "only 1"}},
      {with(base(), "attention_multiplier", 0.5), {"attention_multiplier", "0.25"}},
      {with(base(), "residual_multiplier", 0.22), {"residual_multiplier"}},
      {with(base(), "embedding_multiplier", 12.0), {"embedding_multiplier"}},
      {with(base(), "final_logit_softcapping", 30.0), {"final_logit_softcapping"}},
      {with(base(), "attn_logit_softcapping", 50.0), {"attn_logit_softcapping"}},
      {with(base(), "qk_norm", true), {"qk_norm", "only false"}},
      {with(base(), "use_rope", false), {"use_rope", "only true"}},
      {with(base(), "no_rope_layers", {1, 0, 1}), {"no_rope_layers", "a list"}},
      {with(base(), "query_pre_attn_scalar", 144), {"query_pre_attn_scalar", "only 16"}},
      {with(base(), "num_local_experts", 8), {"num_local_experts"}},
      {with(base(), "clip_qkv", 8.0), {"clip_qkv"}},
      {with(base(), "is_causal", false), {"is_causal"}},
      {with(base(), "hidden_activation", "gelu_pytorch_tanh"), {"hidden_activation", "gelu_pytorch_tanh"}},
      {with(base("mistral"), "attention_bias", true), {"attention_bias", "mistral"}},
      {with(base("qwen2"), "mlp_bias", true), {"mlp_bias"}},
      {with(base("qwen2"), "qkv_bias", false), {"qkv_bias"}},
      {with(base("mistral"), "layer_types", {"full_attention", "chunked_attention", "full_attention"}),
       {"layer_types", "'chunked_attention'"}},
      {rope({{"type", "yarn"}, {"rope_type", "default"}, {"factor", 4}}),
       {"rope_scaling", "'yarn'", "'default'"}},
      {rope({{"type", "linear"}, {"rope_type", "llama3"}, {"factor", 4}}), {"rope_scaling", "contradicts"}},
      {rope({{"factor", 4}}), {"rope_scaling", "rope_type", "'factor'"}},
      {rope({{"rope_theta", 5e5}, {"beta_fast", 32}}), {"rope_scaling", "rope_type", "'beta_fast'"}},
      {rope({{"type", "default"}, {"factor", 4}}), {"rope_scaling", "factor", "does not scale"}},
      {rope({{"type", "default"}, {"mrope_section", {4, 6, 6}}}), {"rope_scaling", "mrope_section"}},
      {rope({{"type", "linear"}, {"factor", 2}, {"attention_factor", 1.2}}),
       {"rope_scaling", "attention_factor"}},
      {rope({{"type", "linear"}, {"factor", 2}, {"mscale", 0.7}}), {"rope_scaling", "mscale", "linear"}},
      {rope({{"type", "linear"}, {"factor", 2}, {"low_freq_factor", 1}}),
       {"rope_scaling", "low_freq_factor"}},
      {rope({{"type", "linear"}, {"factor", 0.5}}), {"rope_scaling", "factor", "below 1"}},
      {rope(with(with(llama3, "low_freq_factor", 1), "factor", 0.5)), {"rope_scaling", "below 1"}},
      {rope(with(with(llama3, "low_freq_factor", 1), "long_factor", {1, 2})),
       {"rope_scaling", "long_factor"}},
      {rope({{"full_attention", {{"rope_type", "linear"}, {"factor", 4}}}}),
       {"rope_scaling", "full_attention", "layer type"}},
      {with(base(), "rope_parameters", {{"sliding_attention", {{"rope_theta", 1e4}}}}),
       {"rope_parameters", "sliding_attention"}},
      {rope({{"type", "linear"}}), {"rope_scaling", "factor", "missing"}},
      {rope({{"type", "linear"}, {"factor", 0}}), {"rope_scaling", "factor"}},
      {rope({{"type", 3}}), {"rope_scaling", "type"}},
      {rope("linear"), {"rope_scaling", "object"}},
      {rope(llama3), {"rope_scaling", "low_freq_factor"}},
      {rope(with(with(llama3, "low_freq_factor", 1), "original_max_position_embeddings", 1024)),
       {"original_max_position_embeddings", "1024", "512"}},
      {with(rope({{"type", "linear"}, {"factor", 2}}), "rope_parameters", {{"rope_type", "default"}}),
       {"rope_scaling", "contradicts"}},
      {with(with(base(), "rope_theta", 5e5), "rope_parameters",
            {{"rope_type", "default"}, {"rope_theta", 1e4}}),
       {"rope_parameters", "rope_theta", "contradicts"}},
      {with(base("mistral"), "sliding_window", 0), {"sliding_window"}},
      {with(base("mistral"), "sliding_window", false), {"sliding_window"}},
      {with(base("qwen2"), "layer_types", {"full_attention"}), {"layer_types", "1", "3"}},
      {with(base("qwen2"), "layer_types", {"full_attention", "linear_attention", "full_attention"}),
       {"layer_types", "'linear_attention'"}},
      {with(base("qwen2"), "layer_types", {"full_attention", "sliding_attention", "full_attention"}),
       {"layer_types", "use_sliding_window"}},
      {json::array(), {"object"}},
  };
  for (const char* kind : {"dynamic", "yarn", "longrope", "su", "mrope"}) {
    cases.push_back({rope({{"rope_type", kind}, {"factor", 2.0}}),
                     {"rope_scaling", std::string("'") + kind + "'", "default, linear, llama3"}});
  }
  for (const Case& c : cases) {
    SCOPED_TRACE(c.config.dump());
    const std::string message = data_error([&] { (void)parse(c.config); });
    EXPECT_EQ(message.rfind("F: ", 0), 0U) << message;
    for (const std::string& part : c.says) EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

TEST(ConfigJson, ValuesThatChangeNothingAreTaken) {
  json config = base();
  for (const char* key :
       {"qk_norm", "mlp_bias", "attention_bias", "use_sliding_window", "final_logit_softcapping"})
    config[key] = nullptr;
  config.update({{"pretraining_tp", 2},
                 {"logits_scaling", 1.0},
                 {"residual_multiplier", 1},
                 {"attention_multiplier", 0.25},
                 {"query_pre_attn_scalar", 16},
                 {"no_rope_layers", {1, 1, 1}},
                 {"partial_rotary_factor", 1.0},
                 {"attention_dropout", 0.0},
                 {"hidden_act", "swish"},
                 {"is_encoder_decoder", false},
                 {"sliding_window", 64},
                 {"some_note", "of nobody's"}});
  EXPECT_EQ(parse(config).sliding_window, 0);
  config["use_sliding_window"] = true;
  EXPECT_EQ(parse(config).sliding_window, 64);
  EXPECT_TRUE(parse(with(base("qwen2"), "attention_bias", true)).qkv_bias);
  const auto rope = [](const json& value) { return parse(with(base(), "rope_scaling", value)).rope; };
  EXPECT_EQ(
      rope({{"type", "linear"}, {"rope_type", "linear"}, {"factor", 2}, {"attention_factor", 1}}).factor, 2);
  EXPECT_EQ(rope({{"type", "linear"}, {"factor", 2}, {"original_max_position_embeddings", 256}}).factor, 2);
  EXPECT_EQ(rope({{"type", "default"}, {"factor", 1.0}, {"mscale", nullptr}}).kind, RopeKind::kDefault);
  EXPECT_EQ(rope({{"rope_theta", 5e5}}).theta, 5e5);
  EXPECT_EQ(rope(json::object()).kind, RopeKind::kDefault);
}

// transformers drops them while it trains; here nothing of the base model is dropped.
TEST(ConfigJson, DropoutOfTheBaseModelIsRefusedByName) {
  for (const char* key : {"attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
                          "dropout", "hidden_dropout_prob", "layerdrop"}) {
    const std::string message = data_error([&] { (void)parse(with(base(), key, 0.1)); });
    EXPECT_EQ(message.rfind(std::string("F: ") + key + ": '0.1' means that training drops", 0), 0U)
        << message;
    EXPECT_NE(message.find("only 0 is"), std::string::npos) << message;
    for (const json& neutral : {json(0), json(0.0), json(false), json(nullptr)}) {
      EXPECT_EQ(parse(with(base(), key, neutral)).hidden_size, parse(base()).hidden_size) << key;
    }
  }
  EXPECT_EQ(parse(with(base(), "classifier_dropout", 0.1)).hidden_size, parse(base()).hidden_size);
}

TEST(ConfigJson, PaddingIsATokenOrNone) {
  EXPECT_EQ(parse(with(base(), "pad_token_id", 3)).pad_id, 3);
  for (const json& none : {json(-1), json(nullptr)})
    EXPECT_EQ(parse(with(base(), "pad_token_id", none)).pad_id, -1);
  const int64_t vocab = parse(base()).vocab_size;
  for (const json& bad : {json(vocab), json(2.5), json("3"), json::array({3})}) {
    const std::string message = data_error([&] { (void)parse(with(base(), "pad_token_id", bad)); });
    EXPECT_EQ(message.rfind("F: pad_token_id: must be token ids from 0 to ", 0), 0U) << message;
  }
}

TEST(ConfigJson, RefusesBrokenText) {
  const auto message = [](const std::string& text) {
    return data_error([&] { (void)parse_model_config(text, "F"); });
  };
  EXPECT_NE(message("{\n\"a\": 1,\n}").find("F:3:"), std::string::npos);
  EXPECT_NE(message(R"({"a":1,"a":2})").find("'a' appears twice"), std::string::npos);
  EXPECT_NE(message("").find("F: is empty"), std::string::npos);
  EXPECT_NE(message("{\"hidden_size\": 1e999}").find("F"), std::string::npos);
  const TempFolder folder;
  EXPECT_NE(data_error([&] { (void)read_model_config(folder.path()); }).find("config.json"),
            std::string::npos);
  EXPECT_NE(data_error([&] { (void)read_model_config(folder / "no"); }).find("not a folder"),
            std::string::npos);
}

TEST(ConfigJson, WhatIsWrittenReadsBack) {
  const json llama3 = {{"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 128},
                       {"rope_type", "llama3"}};
  std::vector<json> configs = {base(), base("mistral"), with(base("qwen2"), "tie_word_embeddings", true)};
  configs.push_back(with(with(base(), "rope_scaling", llama3), "rope_theta", 5e5));
  configs.push_back(with(base(), "rope_scaling", {{"type", "linear"}, {"factor", 4.0}}));
  configs.push_back(with(with(base(), "eos_token_id", {7, 9}), "bos_token_id", 1));
  configs.push_back(with(with(base(), "eos_token_id", 7), "head_dim", 32));
  configs.push_back(with(base("mistral"), "sliding_window", nullptr));
  for (const json& config : configs) {
    SCOPED_TRACE(config.dump());
    const TempFolder folder;
    const ModelConfig model = parse(config);
    write_model_config(folder.path(), model);
    expect_equal(read_model_config(folder.path()), model);
    const json written = json::parse(read_file(folder / "config.json"));
    EXPECT_EQ(written.at("rope_theta").get<double>(), model.rope.theta);  // transformers 4
    EXPECT_EQ(written.at("rope_parameters").at("rope_theta").get<double>(), model.rope.theta);
    // Each version's words alone say the same.
    json old_words = written;
    old_words.erase("rope_parameters");
    expect_equal(parse(old_words), model);
    json new_words = written;
    new_words.erase("rope_theta");
    new_words.erase("rope_scaling");
    expect_equal(parse(new_words), model);
  }
  json qwen = with(with(base("qwen2"), "use_sliding_window", true), "max_window_layers", 0);
  const TempFolder folder;
  EXPECT_THROW(write_model_config(folder / "absent", parse(base())), IoError);
  EXPECT_THROW(write_model_config(folder.path(), parse(qwen)), DataError);
}

}  // namespace
}  // namespace pesc
