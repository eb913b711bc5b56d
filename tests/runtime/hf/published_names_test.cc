// Tensors of a folder under the model's names: fused ones in parts, and the text part of a model of more than
// text.
#include "runtime/hf/published_names.h"

#include <numeric>

#include "model/hf_names.h"
#include "runtime/hf/safetensors_write.h"
#include "runtime/hf/weight_names.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

constexpr int64_t kHidden = 8;

ModelConfig model_of(Family family) {
  ModelConfig m;
  m.family = family;
  m.vocab_size = 11;
  m.hidden_size = kHidden;
  m.intermediate_size = 5;
  m.num_hidden_layers = 2;
  m.num_attention_heads = 6;
  m.num_key_value_heads = 2;
  m.head_dim = 4;
  return m;
}

struct Matrix {
  std::string name;
  int64_t rows;
};

// Element i of tensor number n is 1000 n + i.
void write_matrices(const std::string& path, const std::vector<Matrix>& matrices) {
  std::vector<SafetensorsWriteEntry> entries;
  for (size_t n = 0; n < matrices.size(); ++n) {
    std::vector<float> values(static_cast<size_t>(matrices[n].rows * kHidden));
    std::iota(values.begin(), values.end(), 1000.0F * static_cast<float>(n));
    entries.push_back(
        {matrices[n].name, DType::kF32, {matrices[n].rows, kHidden}, [values](const ByteSink& sink) {
           sink(std::as_bytes(std::span(values)));
         }});
  }
  write_safetensors(path, entries, {});
}

std::vector<Matrix> fused_layers() {
  std::vector<Matrix> out;
  for (int layer = 0; layer < 2; ++layer) {
    const std::string at = "model.layers." + std::to_string(layer) + ".";
    out.push_back({at + "self_attn.qkv_proj.weight", 24 + 8 + 8});
    out.push_back({at + "mlp.gate_up_proj.weight", 10});
  }
  return out;
}

TEST(PublishedNames, FusedTensorsAreReadInParts) {
  const TempFolder folder;
  write_matrices(folder / "model.safetensors", fused_layers());
  HfFolder hf(folder.path());
  const ModelConfig model = model_of(Family::kPhi3);
  use_model_names(hf, model);
  EXPECT_EQ(hf.names().size(), 10U);
  struct Place {
    Linear linear;
    int64_t rows;
    float first;  // element of layer 0
  };
  for (const Place& p : {Place{Linear::kQ, 24, 0},
                         {Linear::kK, 8, 24 * kHidden},
                         {Linear::kV, 8, 32 * kHidden},
                         {Linear::kGate, 5, 1000},
                         {Linear::kUp, 5, 1000 + 5 * kHidden}}) {
    for (int64_t layer = 0; layer < 2; ++layer) {
      const std::string name = hf::weight(layer, p.linear);
      SCOPED_TRACE(name);
      ASSERT_TRUE(hf.has(name));
      const float first = p.first + 2000.0F * static_cast<float>(layer);
      std::vector<float> all(static_cast<size_t>(p.rows * kHidden));
      hf.read({name, p.rows, kHidden, 0, p.rows, 0, kHidden}, all.data());
      for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], first + static_cast<float>(i));
      // Rows and columns of a tensor-parallel rank.
      std::vector<float> block(4);
      hf.read({name, p.rows, kHidden, 2, 2, 3, 2}, block.data());
      const float at = first + 2 * kHidden + 3;
      EXPECT_EQ(block, (std::vector<float>{at, at + 1, at + kHidden, at + kHidden + 1}));
      const std::string message = data_error([&] {
        hf.read({name, p.rows + 1, kHidden, 0, 1, 0, kHidden}, all.data());
      });
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, str_cat("[", p.rows, ", 8]"), message);
    }
  }
  EXPECT_FALSE(hf.has("model.layers.0.self_attn.qkv_proj.weight"));
}

TEST(PublishedNames, FusedTensorsOfOtherSizesAreRefused) {
  const auto refused = [](std::vector<Matrix> matrices) {
    const TempFolder folder;
    write_matrices(folder / "model.safetensors", matrices);
    HfFolder hf(folder.path());
    return data_error([&] { use_model_names(hf, model_of(Family::kPhi3)); });
  };
  std::vector<Matrix> other = fused_layers();
  other[2].rows = 39;
  const std::string rows = refused(other);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "'model.layers.1.self_attn.qkv_proj.weight' has shape [39, 8]",
                      rows);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "config.json asks for 40 rows: 24 of", rows);
  std::vector<Matrix> both = fused_layers();
  both.push_back({hf::weight(1, Linear::kUp), 5});
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "holds both 'model.layers.1.mlp.gate_up_proj.weight'",
                      refused(both));
}

// In a family that does not fuse, such tensors belong to other weights.
TEST(PublishedNames, OtherFamiliesDoNotSplit) {
  const TempFolder folder;
  write_matrices(folder / "model.safetensors", fused_layers());
  HfFolder hf(folder.path());
  use_model_names(hf, model_of(Family::kLlama));
  EXPECT_TRUE(hf.has("model.layers.0.self_attn.qkv_proj.weight"));
  EXPECT_FALSE(hf.has(hf::weight(0, Linear::kQ)));
  const std::string message = data_error([&] {
    (void)compare_weights(hf, model_of(Family::kLlama), {"model.layers.0.mlp.gate_up_proj.weight"});
  });
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "qkv_proj", message);
}

TEST(PublishedNames, MissingFusedTensorsAreNamedByTheirParts) {
  const TempFolder folder;
  std::vector<Matrix> some = fused_layers();
  some.erase(some.begin() + 2);
  write_matrices(folder / "model.safetensors", some);
  HfFolder hf(folder.path());
  use_model_names(hf, model_of(Family::kPhi3));
  const std::string message = data_error([&] {
    (void)compare_weights(hf, model_of(Family::kPhi3),
                          {hf::weight(0, Linear::kQ), hf::weight(1, Linear::kQ)});
  });
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "'model.layers.1.self_attn.q_proj.weight'", message);
}

// As the hub has Mistral Small 3.1, and as transformers 5 names the same tensors.
TEST(PublishedNames, TheTextPartLosesItsPrefix) {
  const std::vector<std::vector<Matrix>> folders = {{{"language_model.model.embed_tokens.weight", 3},
                                                     {"language_model.model.layers.0.mlp.up_proj.weight", 2},
                                                     {"language_model.lm_head.weight", 3},
                                                     {"vision_tower.patch_conv.weight", 1}},
                                                    {{"model.language_model.embed_tokens.weight", 3},
                                                     {"model.language_model.layers.0.mlp.up_proj.weight", 2},
                                                     {"lm_head.weight", 3},
                                                     {"model.vision_tower.patch_conv.weight", 1}}};
  for (const std::vector<Matrix>& matrices : folders) {
    SCOPED_TRACE(matrices.front().name);
    const TempFolder folder;
    write_matrices(folder / "model.safetensors", matrices);
    HfFolder hf(folder.path());
    use_model_names(hf, model_of(Family::kMistral));
    std::vector<float> to(2 * kHidden);
    hf.read({"model.layers.0.mlp.up_proj.weight", 2, kHidden, 0, 2, 0, kHidden}, to.data());
    EXPECT_EQ(to[3], 1003.0F);
    // Nothing is left over but the tower, which is skipped and said.
    const WeightReport report = compare_weights(
        hf, model_of(Family::kMistral), {hf::kEmbedding, hf::kHead, "model.layers.0.mlp.up_proj.weight"});
    EXPECT_TRUE(report.warnings.empty());
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "vision_tower", report.summary);
  }
  const TempFolder folder;
  write_matrices(folder / "model.safetensors", {{"language_model.lm_head.weight", 3}, {"lm_head.weight", 3}});
  HfFolder hf(folder.path());
  EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                      "holds both 'language_model.lm_head.weight' and 'lm_head.weight'",
                      data_error([&] { use_model_names(hf, model_of(Family::kMistral)); }));
}

}  // namespace
}  // namespace pesc
