// ranks: 1 4
// The whole model on the weights of a folder that is quantised already: on every layout it is the model of the values
// that they stand for, in its loss and in every gradient. A linear that the folder left plain stays plain, and takes
// those that are stacked with it along.
#include "tests/runtime/hf/quantized_folder.h"

#include <gtest/gtest.h>

#include "runtime/hf/published_names.h"
#include "tests/model/rig.h"

namespace pesc {
namespace {

// Tensor parallelism cuts its matrices off the grid of 128 x 128.
ModelConfig blocks_llama() {
  ModelConfig m = tiny_llama();
  m.hidden_size = 160;
  m.intermediate_size = 208;
  m.head_dim = 40;
  return m;
}

// Every tensor of the model: linears quantised, all else as the test models have it.
void write_model(const TempFolder& folder, const Decoder& whole, const QuantizedBase& base) {
  StoredTensors tensors;
  const ModelConfig& model = whole.model();
  std::map<std::string, int64_t> linears;
  for (int64_t i = 0; i < model.num_hidden_layers * kLinears; ++i)
    linears[hf::weight(i / kLinears, static_cast<Linear>(i % kLinears))] = i;
  for (const Parameter& p : whole.parameters().all()) {
    if (!p.dense) continue;
    const ShardSpec& s = p.spec;
    const auto linear = linears.find(s.name);
    if (linear != linears.end() &&
        base.holds(linear->second / kLinears, static_cast<Linear>(linear->second % kLinears))) {
      const std::string module = s.name.substr(0, s.name.size() - std::string(".weight").size());
      quantized_weight(base.format, s.global_rows, s.global_cols, static_cast<unsigned>(linear->second))
          .add_to(tensors, module);
      continue;
    }
    std::vector<float> values;
    for (int64_t r = 0; r < s.global_rows; ++r)
      for (int64_t c = 0; c < s.global_cols; ++c) values.push_back(weight_noise(s, r, c));
    tensors[s.name] = stored(DType::kF32,
                             s.global_rows == 1 ? std::vector<int64_t>{s.global_cols}
                                                : std::vector<int64_t>{s.global_rows, s.global_cols},
                             values);
  }
  write_stored(folder / "model.safetensors", tensors);
}

void read_base(Rig& rig, const TempFolder& folder, const ModelConfig& model) {
  HfFolder base(folder.path());
  use_model_names(base, model);
  rig.decoder->parameters().initialise(rig.decoder->stream(), &base, 1, 0.02);
  randomise_trainable(*rig.decoder);
}

void is_the_model_of_its_values(const ModelConfig& plain, const PescConfig& pesc, FrozenFormat format,
                                const std::vector<int64_t>& left) {
  const MpiSession session;
  const auto world = test_world(session);
  const auto own = alone(*world);
  ModelConfig model = plain;
  model.quantized = QuantizedBase{format, left};
  Rig reference(*own, model, pesc, five_rows(model), {});  // holds float32: the folder is dequantised
  const TempFolder folder;
  write_model(folder, *reference.decoder, *model.quantized);
  read_base(reference, folder, model);
  FirstChoices choices;
  const double loss = reference.train(&choices);
  const Tensors want = reference.gradients();
  for (const int tp : {1, 2, 4}) {
    for (const int ep : {1, 4}) {
      if (world->size() % tp != 0 || world->size() % ep != 0) continue;
      SCOPED_TRACE(str_cat(frozen_format_text(format), ", ", world->size(), " ranks, tp ", tp, ", ep ", ep));
      Rig rig(*world, model, pesc, five_rows(model), {.tp = tp, .ep = ep, .frozen = format});
      int quantised = 0;
      for (const Parameter& p : rig.decoder->parameters().all())
        quantised += p.held.out > 0 && is_quantized(p.held.type.format) ? 1 : 0;
      EXPECT_EQ(rig.decoder->parameters().layers.front().gate_up.base.type.folder_scales,
                format == FrozenFormat::kFP8);
      EXPECT_EQ(rig.decoder->parameters().fp8_share(), 0);   // all is dequantised
      EXPECT_EQ(quantised, left.empty() ? 14 : 14 - 3 - 1);  // q, k and v are stacked
      read_base(rig, folder, model);
      EXPECT_NEAR(rig.train() / loss, 1.0, 1e-5);
      EXPECT_NEAR(rig.norm / reference.norm, 1.0, 1e-5);
      const Tensors got = rig.gradients();
      ASSERT_EQ(got.size(), want.size());
      for (const auto& [name, values] : want) EXPECT_LT(relative_error(got.at(name), values), 1e-4) << name;
      rig.train();
      EXPECT_EQ(rig.gradients(), got);
    }
  }
}

constexpr int64_t kKOfLayer0 = static_cast<int64_t>(Linear::kK);
constexpr int64_t kOOfLayer1 = kLinears + static_cast<int64_t>(Linear::kO);

TEST(QuantizedFolderModel, OfFp8RowsIsThatOfTheValues) {
  is_the_model_of_its_values(tiny_llama(), tiny_pesc(), FrozenFormat::kFP8, {});
  is_the_model_of_its_values(tiny_llama(), tiny_pesc(), FrozenFormat::kFP8, {kKOfLayer0, kOOfLayer1});
}
TEST(QuantizedFolderModel, OfFp8BlocksIsThatOfTheValues) {
  is_the_model_of_its_values(blocks_llama(), tiny_pesc(), FrozenFormat::kFP8Blocks, {});
  is_the_model_of_its_values(blocks_llama(), tiny_pesc(), FrozenFormat::kFP8Blocks, {kKOfLayer0, kOOfLayer1});
}
TEST(QuantizedFolderModel, OfNf4IsThatOfTheValues) {
  is_the_model_of_its_values(odd_llama(), odd_pesc(), FrozenFormat::kNF4, {});
  is_the_model_of_its_values(odd_llama(), odd_pesc(), FrozenFormat::kNF4Single, {});
  is_the_model_of_its_values(tiny_llama(), tiny_pesc(), FrozenFormat::kNF4, {kKOfLayer0, kOOfLayer1});
}

}  // namespace
}  // namespace pesc
