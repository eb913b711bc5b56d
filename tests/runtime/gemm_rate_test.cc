// The speed of light of a step: each part of its FLOP at the rate that it is multiplied at.
#include "runtime/gemm_rate.h"

#include <gtest/gtest.h>

namespace pesc {
namespace {

TEST(GemmRates, EachPartIsAtItsOwnRate) {
  const GemmRates rates{100, 200};
  EXPECT_DOUBLE_EQ(rates.seconds(1000, 0), 10);
  EXPECT_DOUBLE_EQ(rates.seconds(1000, 400), 6 + 2);
  EXPECT_DOUBLE_EQ(rates.seconds(1000, 1000), 5);
}

TEST(GemmRates, WithoutARateThatIsNeededNothingIsKnown) {
  EXPECT_DOUBLE_EQ((GemmRates{100, 0}.seconds(1000, 0)), 10);
  EXPECT_EQ((GemmRates{100, 0}.seconds(1000, 1)), 0);
  EXPECT_EQ((GemmRates{0, 200}.seconds(1000, 400)), 0);
  EXPECT_EQ(GemmRates{}.seconds(1000, 0), 0);
}

// A CPU has no FP8 GEMMs, whatever the weights are held in.
TEST(GemmRates, OfACpuAreMeasuredInFloat32Alone) {
  Stream stream((Device()));
  for (const FrozenGemm gemm : {FrozenGemm::kDequantized, FrozenGemm::kFP8}) {
    const GemmRates rates = measured_gemm_rates(stream, DType::kF32, gemm, 0.01);
    EXPECT_GT(rates.compute, 1e8);
    EXPECT_EQ(rates.fp8, 0);
  }
}

}  // namespace
}  // namespace pesc
