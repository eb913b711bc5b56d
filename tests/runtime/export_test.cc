// The exported tensors of every family are those that the family's folders hold, and read back as they were.
#include "runtime/export.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <set>

#include "model/hf_names.h"
#include "runtime/hf/config_json.h"
#include "runtime/hf/hf_folder.h"
#include "runtime/hf/published_names.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

ModelConfig model_of(const FamilyTraits& row) {
  ModelConfig m;
  m.family = row.family;
  m.vocab_size = 13;
  m.hidden_size = 8;
  m.intermediate_size = 6;
  m.num_hidden_layers = 2;
  m.num_attention_heads = 4;
  m.num_key_value_heads = 2;
  m.head_dim = 4;
  m.max_position_embeddings = 16;
  m.qkv_bias = row.qkv_bias();
  m.tie_word_embeddings = row.defaults.tie_word_embeddings;
  return m;
}

// The parameters of a model on one rank, all trained, with random values.
class Parameters {
 public:
  explicit Parameters(const ModelConfig& model) {
    PescConfig full;
    full.mode = TrainMode::kFull;
    full.moe.num_experts = 0;
    values_ = std::make_unique<ModelParameters>(model, full, Mesh(1, 0, 1, 1), DType::kF32,
                                                ModelParameters::Arenas{weights_, copies_, nullptr});
    values_->initialise(stream, nullptr, 7, 0.5);
  }
  [[nodiscard]] const ModelParameters& all() const { return *values_; }

  Stream stream{Device{}};

 private:
  Arena weights_{"weights", Device{}, 1 << 20};
  Arena copies_{"copies", Device{}, 1 << 20};
  std::unique_ptr<ModelParameters> values_;
};

TEST(Export, EveryFamilyReadsBackWhatItWrote) {
  for (const FamilyTraits& row : kFamilies) {
    SCOPED_TRACE(row.model_type);
    const ModelConfig model = model_of(row);
    Parameters parameters(model);
    const TempFolder folder;
    write_safetensors(folder / "model.safetensors", dense_tensors(parameters.stream, model, parameters.all()),
                      {{"format", "pt"}});
    HfFolder hf(folder.path());
    use_model_names(hf, model);
    std::set<std::string> names;
    for (const Parameter& p : parameters.all().all()) {
      names.insert(p.spec.name);
      std::vector<float> read(static_cast<size_t>(p.spec.size())), want = read;
      hf.read(p.spec.name, p.spec.rows, p.spec.cols, 0, p.spec.rows, 0, p.spec.cols, read.data());
      copy_to_host(parameters.stream, p.master, want.data());
      EXPECT_EQ(read, want) << p.spec.name;
    }
    const std::vector<std::string> there = hf.names();
    EXPECT_EQ(std::set<std::string>(there.begin(), there.end()), names);
  }
}

// As a reference case, which transformers saved, has them.
TEST(Export, NamesAndShapesAreThoseOfTransformers) {
  for (const auto& [family, golden] : std::map<Family, std::string>{{Family::kLlama, "llama-gqa"},
                                                                    {Family::kQwen2, "qwen2-bias-tied"},
                                                                    {Family::kQwen3, "qwen3-qk-norm-tied"},
                                                                    {Family::kPhi3, "phi3-fused"},
                                                                    {Family::kSmolLm3, "smollm3-no-rope"}}) {
    const std::string from = std::string(PESC_SOURCE_DIR) + "/tests/goldens/" + golden;
    SCOPED_TRACE(golden);
    const ModelConfig model = read_model_config(from);
    EXPECT_EQ(model.family, family);
    Parameters parameters(model);
    std::map<std::string, std::vector<int64_t>> got, want;
    for (const SafetensorsWriteEntry& e : dense_tensors(parameters.stream, model, parameters.all()))
      got[e.name] = e.shape;
    const HfFolder hf(from);
    for (const std::string& name : hf.names()) want[name] = hf.entry(name)->shape;
    EXPECT_EQ(got, want);
  }
}

}  // namespace
}  // namespace pesc
