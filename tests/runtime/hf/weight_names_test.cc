// Tensors of the folder against those that the model asks for: missing ones, left-over ones, the two
// embeddings.
#include "runtime/hf/weight_names.h"

#include "runtime/hf/dtype_convert.h"
#include "runtime/hf/safetensors_write.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

const std::string kEmbedding = "model.embed_tokens.weight";
const std::string kHead = "lm_head.weight";

// A folder of small tensors, each with a value of its own or one that is given.
class Weights {
 public:
  Weights() { add({kEmbedding, kHead, "model.norm.weight"}).layers(2); }
  Weights& add(const std::vector<std::string>& names) {
    for (const std::string& name : names) values_[name] = static_cast<float>(values_.size());
    return *this;
  }
  Weights& layers(int n) {
    for (int i = 0; i < n; ++i) add({layer(i) + "self_attn.q_proj.weight", layer(i) + "mlp.up_proj.weight"});
    return *this;
  }
  Weights& without(const std::string& name) {
    values_.erase(name);
    return *this;
  }
  Weights& set(const std::string& name, float value, DType dtype = DType::kF32) {
    values_[name] = value;
    dtypes_[name] = dtype;
    return *this;
  }
  static std::string layer(int i) { return "model.layers." + std::to_string(i) + "."; }

  // What a model of two layers says to this folder.
  WeightReport report(bool tied = false) const {
    const TempFolder folder;
    write(folder / "model.safetensors");
    HfFolder hf(folder.path());
    return report_of(hf, tied);
  }
  static WeightReport report_of(HfFolder& hf, bool tied = false) {
    ModelConfig model;
    model.family = Family::kLlama;
    model.num_hidden_layers = 2;
    model.tie_word_embeddings = tied;
    std::vector<std::string> wanted = {kEmbedding, "model.norm.weight"};
    if (!tied) wanted.push_back(kHead);
    for (int i = 0; i < 2; ++i) {
      wanted.push_back(layer(i) + "self_attn.q_proj.weight");
      wanted.push_back(layer(i) + "mlp.up_proj.weight");
    }
    WeightReport report = compare_weights(hf, model, wanted);
    check_tied_head(hf, model);
    return report;
  }
  std::string refused(bool tied = false) const {
    return data_error([&] { (void)report(tied); });
  }
  void write(const std::string& path) const {
    std::vector<SafetensorsWriteEntry> entries;
    for (const auto& [name, value] : values_) {
      const auto found = dtypes_.find(name);
      const DType dtype = found == dtypes_.end() ? DType::kF32 : found->second;
      entries.push_back({name, dtype, {2}, [value = value, dtype](const ByteSink& sink) {
                           const float wide[2] = {value, value};
                           const uint16_t narrow[2] = {f32_to_bf16(value), f32_to_bf16(value)};
                           const bool f32 = dtype == DType::kF32;
                           sink(std::span(f32 ? reinterpret_cast<const std::byte*>(wide)
                                              : reinterpret_cast<const std::byte*>(narrow),
                                          f32 ? sizeof(wide) : sizeof(narrow)));
                         }});
    }
    write_safetensors(path, entries, {});
  }

 private:
  std::map<std::string, float> values_;
  std::map<std::string, DType> dtypes_;
};

#define EXPECT_SAYS(part, text) EXPECT_PRED_FORMAT2(::testing::IsSubstring, part, text)

TEST(WeightNames, AMatchingFolderIsDescribedAndNotWarnedOf) {
  const WeightReport report = Weights().report();
  EXPECT_TRUE(report.warnings.empty());
  EXPECT_SAYS("7 tensors of 'model.safetensors'", report.summary);
  EXPECT_SAYS("untied", report.summary);
}

TEST(WeightNames, MissingTensorsAreNamedAndCounted) {
  const std::string one = Weights().without(Weights::layer(1) + "mlp.up_proj.weight").refused();
  EXPECT_SAYS("'model.layers.1.mlp.up_proj.weight'", one);
  EXPECT_SAYS("of 7 tensors that the model needs, 1 is missing from 'model.safetensors'", one);
  EXPECT_SAYS("num_hidden_layers 2", one);

  const TempFolder folder;
  Weights other;
  for (const std::string& name : {kEmbedding, kHead, std::string("model.norm.weight")}) other.without(name);
  for (int i = 0; i < 2; ++i)
    other.without(Weights::layer(i) + "self_attn.q_proj.weight")
        .without(Weights::layer(i) + "mlp.up_proj.weight");
  other.add({"module.model.embed_tokens.weight", "module.lm_head.weight"});
  const std::string all = other.refused();
  EXPECT_SAYS("7 are missing", all);
  EXPECT_SAYS("and 2 more", all);
  EXPECT_SAYS("'module.model.embed_tokens.weight'", all);
}

TEST(WeightNames, LeftOverTensorsOfComputedModulesAreRefused) {
  for (const std::string name :
       {"model.layers.0.self_attn.q_proj.bias", "model.layers.1.self_attn.q_norm.weight",
        "model.layers.0.self_attn.bias", "model.layers.1.attn.bias", "model.layers.0.attention.bias",
        "model.layers.1.mlp.down_proj.bias", "model.layers.0.self_attn.k_scale",
        "model.layers.0.post_feedforward_layernorm.weight", "model.norm.bias", "lm_head.bias",
        "module.model.layers.0.self_attn.q_norm.weight"}) {
    const std::string message = Weights().add({name}).refused();
    EXPECT_SAYS("'" + name + "'", message);
    EXPECT_SAYS("llama", message);
  }
  const std::string scale = Weights().add({"model.embed_tokens.weight_scale"}).refused();
  EXPECT_SAYS("'model.embed_tokens.weight_scale'", scale);
  EXPECT_SAYS("config.json has no quantization_config", scale);
  const std::string deeper = Weights().layers(4).refused();
  EXPECT_SAYS("'model.layers.2.mlp.up_proj.weight'", deeper);
  EXPECT_SAYS("num_hidden_layers 2", deeper);
  EXPECT_SAYS("layer 3", deeper);
  for (const std::string name : {"model.layers.0.self_attn.q_proj.lora_A.weight",
                                 "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight",
                                 "other.lora_embedding_A", "model.layers.0.mlp.moe_adapter.router.weight"}) {
    const std::string message = Weights().add({name}).refused();
    EXPECT_SAYS("'" + name + "'", message);
    EXPECT_SAYS("merge the adapter", message);
  }
}

TEST(WeightNames, OtherLeftOverTensorsAreNamedOnce) {
  const WeightReport report =
      Weights().add({"score.weight", "v_head.summary.bias", "extra.mask"}).set("vision_tower.x", 1).report();
  ASSERT_EQ(report.warnings.size(), 1U);
  EXPECT_SAYS("3 tensors that the model does not use: 'extra.mask', 'score.weight', 'v_head.summary.bias'",
              report.warnings.front());
  EXPECT_SAYS("'vision_tower.x'", report.summary);
}

TEST(WeightNames, DerivedBuffersAreSilent) {
  const WeightReport report =
      Weights()
          .add({"model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq",
                "model.layers.1.attn.masked_bias", "model.layers.0.self_attn.masked_bias"})
          .report();
  EXPECT_TRUE(report.warnings.empty());
  EXPECT_EQ(report.summary.find("inv_freq"), std::string::npos);
}

TEST(WeightNames, AHeadThatIsTiedMustEqualTheEmbedding) {
  const WeightReport plain = Weights().without(kHead).report(true);
  EXPECT_SAYS("tied: the head is model.embed_tokens.weight", plain.summary);
  EXPECT_TRUE(Weights().set(kEmbedding, 3).set(kHead, 3).report(true).warnings.empty());
  EXPECT_TRUE(Weights().set(kEmbedding, 3).set(kHead, 3, DType::kBF16).report(true).warnings.empty());
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::string other = Weights().set(kEmbedding, 3).set(kHead, 4, dtype).refused(true);
    EXPECT_SAYS("lm_head.weight", other);
    EXPECT_SAYS("tie_word_embeddings", other);
  }
  const TempFolder folder;
  Weights().without(kEmbedding).set(kHead, 5).write(folder / "model.safetensors");
  HfFolder hf(folder.path());
  EXPECT_SAYS("the head is lm_head.weight", Weights::report_of(hf, true).summary);
  float value[2] = {};
  hf.read({kEmbedding, 1, 2, 0, 1, 0, 2}, value);
  EXPECT_EQ(value[1], 5.0F);
  EXPECT_SAYS(kEmbedding, Weights().without(kEmbedding).without(kHead).refused(true));
  EXPECT_SAYS("tie_word_embeddings", Weights().without(kHead).refused(false));
}

TEST(WeightNames, TensorsThatTheIndexDoesNotListAreNotForgotten) {
  const auto refused = [](const std::string& unlisted) {
    const TempFolder folder;
    Weights all;
    all.add({unlisted}).write(folder / "model-00001-of-00001.safetensors");
    std::string map;
    const SafetensorsFile file(folder / "model-00001-of-00001.safetensors");
    for (const SafetensorsEntry& t : file.header().tensors)
      if (t.name != unlisted)
        map += (map.empty() ? "\"" : ",\"") + t.name + "\":\"model-00001-of-00001.safetensors\"";
    write_file(folder / "model.safetensors.index.json", "{\"weight_map\":{" + map + "}}");
    HfFolder hf(folder.path());
    return data_error([&] { (void)Weights::report_of(hf); });
  };
  EXPECT_SAYS("'model.layers.0.self_attn.q_proj.bias'", refused("model.layers.0.self_attn.q_proj.bias"));
  const std::string needed = refused(Weights::layer(0) + "mlp.up_proj.weight");
  EXPECT_SAYS("stands in model-00001-of-00001.safetensors", needed);
  EXPECT_SAYS("index.json does not list it", needed);
}

}  // namespace
}  // namespace pesc
