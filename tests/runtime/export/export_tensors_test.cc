#include "runtime/export/export_tensors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "model/hf_names.h"
#include "ops/core/bf16.h"
#include "runtime/hf/config_json.h"
#include "runtime/hf/hf_folder.h"
#include "runtime/hf/peft_modules.h"
#include "runtime/hf/published_names.h"
#include "tests/runtime/export/small_run.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc::testing {
namespace {

template <class T>
std::vector<T> produced(const SafetensorsWriteEntry& entry) {
  std::vector<std::byte> bytes;
  entry.produce(
      [&](std::span<const std::byte> piece) { bytes.insert(bytes.end(), piece.begin(), piece.end()); });
  EXPECT_EQ(static_cast<int64_t>(bytes.size()), safetensors_bytes(entry)) << entry.name;
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

std::set<std::string> names_of(const std::vector<SafetensorsWriteEntry>& entries) {
  std::set<std::string> names;
  for (const auto& entry : entries) names.insert(entry.name);
  EXPECT_EQ(names.size(), entries.size());
  return names;
}

// The parameters that a tensor of the files holds, one below the other.
std::vector<std::string> parts_of(const ModelConfig& model, const std::string& name) {
  std::vector<std::string> parts;
  for (int64_t i = 0; i < model.num_hidden_layers; ++i) {
    for (const hf::Fused& fused : hf::fused_weights(traits_of(model.family).fused_linears, i)) {
      if (fused.name != name) continue;
      for (const Linear linear : fused.parts) parts.push_back(hf::weight(i, linear));
    }
  }
  return parts.empty() ? std::vector{name} : parts;
}

// W + (alpha / r) B A in double, and the sum of the magnitudes of its terms, which bounds its rounding.
struct Merged {
  double value, magnitude;
};
Merged merged(const SmallRun& run, const PescConfig& pesc, const std::string& weight, int64_t row,
              int64_t col) {
  const std::string stem = weight.substr(0, weight.size() - std::string(".weight").size());
  const std::string a = stem + ".lora_A.weight", b = stem + ".lora_B.weight";
  const int64_t in = run.spec(weight).global_cols, r = pesc.lora.r;
  Merged out{value_at(weight, row * in + col), std::abs(value_at(weight, row * in + col))};
  for (int64_t k = 0; k < r; ++k) {
    const double term = pesc.lora.lora_alpha / static_cast<double>(r) *
                        static_cast<double>(value_at(b, row * r + k)) * value_at(a, k * in + col);
    out.value += term;
    out.magnitude += std::abs(term);
  }
  return out;
}

class ExportTensorsTest : public ::testing::TestWithParam<Family> {
 protected:
  ModelConfig model_ = small_model(GetParam());
  PescConfig pesc_ = small_pesc();
  SmallRun run_{model_, pesc_};
  SmallBase base_;
};

// Whole, and in slices of a few rows, of which the last is short.
TEST_P(ExportTensorsTest, LoraIsMergedInFloat32) {
  for (const int64_t slice : {ExportTensorsOptions::kSliceBytes, int64_t{5} * 16 * 4}) {
    ExportTensors tensors(model_, pesc_, &base_, run_.files(), run_.checkpoint(), run_.stream(),
                          {.slice_bytes = slice});
    int64_t with_lora = 0;
    for (const auto& entry : tensors.dense(DType::kF32)) {
      const std::vector<float> got = produced<float>(entry);
      size_t at = 0;
      for (const std::string& part : parts_of(model_, entry.name)) {
        const ShardSpec& spec = run_.spec(part);
        const bool lora = part.ends_with(".q_proj.weight") || part.ends_with(".v_proj.weight") ||
                          part.ends_with(".gate_proj.weight") || part.ends_with(".down_proj.weight");
        with_lora += lora ? 1 : 0;
        ASSERT_LE(at + static_cast<size_t>(spec.size()), got.size()) << entry.name;
        for (int64_t i = 0; i < spec.size(); ++i, ++at) {
          if (!lora) {
            ASSERT_EQ(got[at], value_at(part, i)) << part;
            continue;
          }
          // r + 2 roundings of float32, each of half a unit in the last place of a partial sum.
          const Merged want = merged(run_, pesc_, part, i / spec.cols, i % spec.cols);
          const double bound =
              static_cast<double>(pesc_.lora.r + 2) * 0x1p-24 * want.magnitude * (1 + 0x1p-20);
          ASSERT_NEAR(got[at], want.value, bound) << part << " " << i;
        }
      }
      EXPECT_EQ(at, got.size()) << entry.name;
    }
    EXPECT_EQ(with_lora, 4 * model_.num_hidden_layers);
  }
}

TEST_P(ExportTensorsTest, NamesAndShapesAreTheFamilys) {
  ExportTensors tensors(model_, pesc_, &base_, run_.files(), run_.checkpoint(), run_.stream());
  const auto dense = tensors.dense(DType::kF32);
  std::set<std::string> want{hf::kEmbedding, hf::kHead, hf::kFinalNorm};
  for (int64_t i = 0; i < model_.num_hidden_layers; ++i) {
    for (int l = 0; l < kLinears; ++l) want.insert(hf::weight(i, static_cast<Linear>(l)));
    for (const hf::Fused& fused : hf::fused_weights(traits_of(model_.family).fused_linears, i)) {
      for (const Linear l : fused.parts) want.erase(hf::weight(i, l));
      want.insert(fused.name);
    }
    if (model_.norms_qk()) want.insert({hf::q_norm(i), hf::k_norm(i)});
    for (const Linear l : {Linear::kQ, Linear::kK, Linear::kV})
      if (model_.qkv_bias) want.insert(hf::bias(i, l));
    want.insert(hf::input_norm(i));
    want.insert(hf::post_norm(i));
  }
  EXPECT_EQ(names_of(dense), want);
  for (const auto& entry : dense) {
    const bool vector = entry.name.ends_with("norm.weight") || entry.name.ends_with(".bias");
    EXPECT_EQ(entry.shape.size(), vector ? 1U : 2U) << entry.name;
  }
}

TEST_P(ExportTensorsTest, Bf16RoundsTheMergedValueOnce) {
  ExportTensors tensors(model_, pesc_, &base_, run_.files(), run_.checkpoint(), run_.stream());
  const auto exact = tensors.dense(DType::kF32), rounded = tensors.dense(DType::kBF16);
  ASSERT_EQ(exact.size(), rounded.size());
  for (size_t i = 0; i < exact.size(); ++i) {
    EXPECT_EQ(rounded[i].dtype, DType::kBF16);
    const auto values = produced<float>(exact[i]);
    const auto bits = produced<uint16_t>(rounded[i]);
    for (size_t j = 0; j < values.size(); ++j) ASSERT_EQ(bits[j], f32_to_bf16(values[j])) << exact[i].name;
  }
}

TEST_P(ExportTensorsTest, WhatIsTrainedKeepsItsBits) {
  ExportTensors tensors(model_, pesc_, &base_, run_.files(), run_.checkpoint(), run_.stream(),
                        {.slice_bytes = 64});
  const auto experts = tensors.moe_adapters(DType::kF32, DType::kF32), lora = tensors.lora(DType::kF32, "p.");
  const int64_t layers = model_.num_hidden_layers;
  EXPECT_EQ(static_cast<int64_t>(experts.size()), layers * (1 + 2 * pesc_.moe.num_experts));
  const std::vector<PeftModule> modules = peft_modules(model_, pesc_.lora, 0);
  EXPECT_EQ(static_cast<int64_t>(lora.size()), layers * 2 * std::ssize(modules));
  const auto check = [&](const SafetensorsWriteEntry& entry, const std::string& name) {
    const auto values = produced<float>(entry);
    EXPECT_EQ(entry.shape, (std::vector<int64_t>{run_.spec(name).global_rows, run_.spec(name).global_cols}));
    for (size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(values[i], value_at(name, static_cast<int64_t>(i))) << name;
  };
  for (const auto& entry : experts) check(entry, entry.name);
  // Of fused modules: PeftOfFusedLinears (peft_round_trip_test.cc).
  for (const auto& entry : lora) {
    if (entry.name.find("qkv_proj") != std::string::npos || entry.name.find("gate_up") != std::string::npos)
      continue;
    ASSERT_TRUE(entry.name.starts_with("p.model.layers.")) << entry.name;
    check(entry, entry.name.substr(2));
  }
}

TEST_P(ExportTensorsTest, RoutersMayBeWiderThanTheAdapters) {
  ExportTensors tensors(model_, pesc_, &base_, run_.files(), run_.checkpoint(), run_.stream());
  for (const auto& entry : tensors.moe_adapters(DType::kBF16, DType::kF32)) {
    const bool router = entry.name.ends_with("router.weight");
    EXPECT_EQ(entry.dtype, router ? DType::kF32 : DType::kBF16) << entry.name;
  }
}

// A full model's slices are of 64 MiB; here of some rows.
TEST_P(ExportTensorsTest, NoMoreThanASliceIsReadAtOnce) {
  int64_t told = 0;
  ExportTensors tensors(model_, pesc_, &base_, run_.files(), run_.checkpoint(), run_.stream(),
                        {.slice_bytes = 256, .progress = [&](int64_t n) { told += n; }});
  int64_t bytes = 0;
  for (const auto& entry : tensors.dense(DType::kF32))
    bytes += static_cast<int64_t>(produced<float>(entry).size() * sizeof(float));
  EXPECT_EQ(told, bytes);
  EXPECT_LE(base_.largest() * 4, 256);
}

INSTANTIATE_TEST_SUITE_P(Families, ExportTensorsTest,
                         ::testing::Values(Family::kLlama, Family::kMistral, Family::kQwen2, Family::kQwen3,
                                           Family::kPhi3, Family::kSmolLm3));

TEST(ExportOfAFullRun, TakesEveryWeightFromTheCheckpoint) {
  const ModelConfig model = small_model();
  const PescConfig pesc = small_pesc(TrainMode::kFull);
  SmallRun run(model, pesc);
  ExportTensors tensors(model, pesc, nullptr, run.files(), run.checkpoint(), run.stream());
  const auto dense = tensors.dense(DType::kF32);
  EXPECT_EQ(dense.size(), tensors.dense_names().size());
  for (const auto& entry : dense) {
    const auto values = produced<float>(entry);
    for (size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(values[i], value_at(entry.name, static_cast<int64_t>(i))) << entry.name;
  }
  EXPECT_TRUE(tensors.moe_adapters(DType::kF32, DType::kF32).empty());
}

TEST(ExportOfAFullRun, EveryFamilyReadsBackWhatItWrote) {
  const PescConfig pesc = small_pesc(TrainMode::kFull);
  for (const FamilyTraits& row : kFamilies) {
    SCOPED_TRACE(row.model_type);
    const ModelConfig model = small_model(row.family);
    SmallRun run(model, pesc);
    ExportTensors tensors(model, pesc, nullptr, run.files(), run.checkpoint(), run.stream());
    const TempFolder folder;
    write_safetensors(folder / "model.safetensors", tensors.dense(DType::kF32), {{"format", "pt"}});
    HfFolder hf(folder.path());
    use_model_names(hf, model);
    const std::vector<std::string> there = hf.names(), want = tensors.dense_names();
    EXPECT_EQ(std::set<std::string>(there.begin(), there.end()),
              std::set<std::string>(want.begin(), want.end()));
    for (const std::string& name : want) {
      const ShardSpec& s = run.spec(name);
      std::vector<float> read(static_cast<size_t>(s.size()));
      hf.read({name, s.rows, s.cols, 0, s.rows, 0, s.cols}, read.data());
      for (size_t i = 0; i < read.size(); ++i)
        ASSERT_EQ(read[i], value_at(name, static_cast<int64_t>(i))) << name;
    }
  }
}

// As a reference case, which transformers saved, has them.
TEST(ExportOfAFullRun, NamesAndShapesAreThoseOfTransformers) {
  const PescConfig pesc = small_pesc(TrainMode::kFull);
  for (const auto& [family, golden] : std::map<Family, std::string>{{Family::kLlama, "llama-gqa"},
                                                                    {Family::kQwen2, "qwen2-bias-tied"},
                                                                    {Family::kQwen3, "qwen3-qk-norm-tied"},
                                                                    {Family::kPhi3, "phi3-fused"},
                                                                    {Family::kSmolLm3, "smollm3-no-rope"}}) {
    const std::string from = std::string(PESC_SOURCE_DIR) + "/tests/goldens/" + golden;
    SCOPED_TRACE(golden);
    const ModelConfig model = read_model_config(from);
    EXPECT_EQ(model.family, family);
    SmallRun run(model, pesc);
    ExportTensors tensors(model, pesc, nullptr, run.files(), run.checkpoint(), run.stream());
    std::map<std::string, std::vector<int64_t>> got, want;
    for (const SafetensorsWriteEntry& e : tensors.dense(DType::kF32)) got[e.name] = e.shape;
    const HfFolder hf(from);
    for (const std::string& name : hf.names()) want[name] = hf.entry(name)->shape;
    EXPECT_EQ(got, want);
  }
}

// Of more experts than the checkpoint has: it is of another run.
TEST(ExportOfAnotherShape, IsRefusedByName) {
  const ModelConfig model = small_model();
  SmallRun run(model, small_pesc());
  SmallBase base;
  PescConfig other = small_pesc();
  other.moe.adapter_dim = 6;
  ExportTensors tensors(model, other, &base, run.files(), run.checkpoint(), run.stream());
  try {
    for (const auto& entry : tensors.moe_adapters(DType::kF32, DType::kF32)) (void)produced<float>(entry);
    FAIL() << "no error";
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("adapter_down"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace pesc::testing
