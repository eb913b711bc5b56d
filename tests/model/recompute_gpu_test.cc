// ranks: 1 2 4
// The recompute policies in BF16: with the copies of LoRA's B beside the frozen weights, a_o beside the
// attention's output, and attention by the library where the build has one, on ranks that share a GPU.
#include <gtest/gtest.h>

#include "ops/fp8_gemm.h"
#include "tests/model/policies.h"

namespace pesc {
namespace {

class RecomputeInBf16 : public testing::Test {
 protected:
  void SetUp() override {
    if (!cuda::built()) GTEST_SKIP() << "no GPU test: this pesc was built without CUDA";
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU test: this machine has no GPU";
    setenv("PESC_TEST_DEVICE", "cuda", 1);
  }
  static void on_every_layout(TrainMode mode, const std::vector<int64_t>& lengths, double several_rounds) {
    const MpiSession session;
    ModelConfig model = bf16_llama();
    model.num_hidden_layers = 4;
    PescConfig pesc = bf16_pesc();
    pesc.mode = mode;
    for (Layout layout : policy_layouts(session.world()->size(), mode == TrainMode::kPesc)) {
      layout.compute = DType::kBF16;
      if (layout.buffer_factor < 1) layout.buffer_factor = several_rounds;
      same_under_every_policy(model, pesc, some_rows(model.vocab_size, lengths), layout);
    }
  }
};

// A dense batch to the library, as sequences of one length are that is a multiple of 128; the others are
// ragged.
TEST_F(RecomputeInBf16, PescSequencesOfOneLength) {
  on_every_layout(TrainMode::kPesc, std::vector<int64_t>(4, 128), 0.1);
}
TEST_F(RecomputeInBf16, PescSequencesOfAnyLength) {
  on_every_layout(TrainMode::kPesc, {40, 7, 64, 1, 30}, 0.1);
}
TEST_F(RecomputeInBf16, LoraAloneIsBitwiseTheSame) {
  on_every_layout(TrainMode::kLora, std::vector<int64_t>(8, 64), 1);
}
// Codes of the tokens are made again too, where GEMMs are in FP8.
TEST_F(RecomputeInBf16, PescOnQuantisedWeights) {
  const MpiSession session;
  const int ranks = session.world()->size();
  ModelConfig model = bf16_llama();
  model.num_hidden_layers = 4;
  const Rows rows = some_rows(model.vocab_size, std::vector<int64_t>(4, 128));
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    for (const FrozenGemm gemm : {FrozenGemm::kDequantized, FrozenGemm::kFP8}) {
      if (gemm == FrozenGemm::kFP8 && !multiplies_fp8(cuda::device_info(test_device().index))) continue;
      same_under_every_policy(model, bf16_pesc(), rows,
                              {.tp = std::min(ranks, 2),
                               .ep = ranks,
                               .compute = DType::kBF16,
                               .frozen = format,
                               .frozen_gemm = gemm});
    }
  }
}
TEST_F(RecomputeInBf16, FullTuningIsBitwiseTheSame) {
  on_every_layout(TrainMode::kFull, {40, 7, 64, 1, 30}, 1);
}

}  // namespace
}  // namespace pesc
