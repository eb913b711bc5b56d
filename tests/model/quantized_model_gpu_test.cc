// ranks: 1 4
// The whole model with FP8 GEMMs against the same bytes dequantised, whose GEMMs are in BF16: losses, and every gradient as a
// whole tensor.
//
// FP8 rounds tokens and gradients to four bits, 2.6 % of a normal value, and its sums are accumulated fast, 0.1 %; weights in NF4
// are rounded to FP8 too, so that the error of a product is sqrt(2) times as large. Four GEMMs lie one after the other in each of two
// layers, so an activation is off by e = 2.6 % sqrt(8) = 7.4 %, 10.5 % from NF4; a gradient has the backward's behind it too,
// sqrt(2) e. Each expert has some hundred tokens, whose errors are independent, so that no tensor is far from that. The bound is
// twice that, 21 % and 30 % (seen: 16 % and 24 %). A loss is a mean over tokens: e / 4. quantized_model_test.cc checks to float32's
// bounds that what is dequantised is computed right.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "ops/fp8_gemm.h"
#include "tests/model/rig.h"

namespace pesc {
namespace {

// |a - b| / |b|
double whole_error(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return INFINITY;
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / size);
}

class QuantizedModelGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (!cuda::built()) GTEST_SKIP() << "no GPU test: this pesc was built without CUDA";
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU test: this machine has no GPU";
    setenv("PESC_TEST_DEVICE", "cuda", 1);
    if (!multiplies_fp8(cuda::device_info(test_device().index)))
      GTEST_SKIP() << "no GPU test: this GPU has no FP8 GEMMs";
  }
};

TEST_F(QuantizedModelGpu, Fp8GemmsAreNearTheDequantisedWeights) {
  const MpiSession session;
  const auto world = test_world(session);
  const ModelConfig model = bf16_llama();
  const Rows rows = some_rows(model.vocab_size, std::vector<int64_t>(4, 128));
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    const double e = 0.0263 * std::sqrt(format == FrozenFormat::kNF4 ? 16.0 : 8.0);
    for (const int tp : {1, std::min(world->size(), 2)}) {
      SCOPED_TRACE(str_cat(frozen_format_name(format), ", tp ", tp));
      Layout layout{.tp = tp, .ep = world->size(), .compute = DType::kBF16, .frozen = format};
      Rig dequantised(*world, model, bf16_pesc(), rows, layout);
      layout.frozen_gemm = FrozenGemm::kFP8;
      Rig fp8(*world, model, bf16_pesc(), rows, layout);
      FirstChoices choices;
      const double loss = dequantised.train(&choices);
      EXPECT_NEAR(fp8.train(&choices) / loss, 1.0, e / 4);
      const Tensors want = dequantised.gradients(), got = fp8.gradients();
      ASSERT_EQ(got.size(), want.size());
      double worst = 0;
      for (const auto& [name, values] : want) {
        const double error = whole_error(got.at(name), values);
        EXPECT_LT(error, 2 * std::sqrt(2.0) * e) << name;
        worst = std::max(worst, error);
      }
      EXPECT_GT(worst, 0.01) << "the GEMMs were not in FP8";
      if (world->rank() == 0)
        std::printf("%s, tp %d: worst gradient %.3f\n", frozen_format_name(format), tp, worst);
      fp8.train(&choices);
      EXPECT_EQ(fp8.gradients(), got);
      if (world->size() == 1) break;
    }
  }
}

}  // namespace
}  // namespace pesc
