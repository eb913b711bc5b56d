// The measured GEMM rates, which define the speed of light of a step.
#pragma once

#include "model/frozen_linear.h"
#include "ops/core/device.h"

namespace pesc {

// FLOP/s: in the compute type, and in FP8 where the frozen linears are multiplied in it (elsewhere 0).
struct GemmRates {
  double compute = 0;
  double fp8 = 0;
  // The time of so many FLOP, `fp8_flops` of them in FP8: each part at its own rate. 0 where a rate that
  // this needs is not known.
  [[nodiscard]] double seconds(double flops, double fp8_flops) const {
    if (compute <= 0 || (fp8_flops > 0 && fp8 <= 0)) return 0;
    return (flops - fp8_flops) / compute + (fp8_flops > 0 ? fp8_flops / fp8 : 0);
  }
};

// FLOP/s of this rank: for each rate the median over at least `seconds` of back-to-back square GEMMs of random
// values. All ranks should measure at the same time. On a GPU the size is 8192^3, each GEMM is timed by the
// device, and 384 MiB (BF16) are allocated during it, 256 MiB for FP8, which has a scale for each row and fast
// accumulation. FP8 follows without a pause, so that both rates are of a GPU as hot as in a step. On the CPU the
// size is 1024^3 (12 MiB), and the result is the mean.
[[nodiscard]] GemmRates measured_gemm_rates(Stream& stream, DType compute, FrozenGemm gemm, double seconds);

}  // namespace pesc
