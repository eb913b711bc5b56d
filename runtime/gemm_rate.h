// The measured GEMM rate, which defines the speed of light of a step.
#pragma once

#include "ops/core/device.h"

namespace pesc {

// FLOP/s of this rank: the median over at least `seconds` of back-to-back square GEMMs of random values in
// the compute type. All ranks should measure at the same time. On a GPU the size is 8192^3, each GEMM is
// timed by the device, and 384 MiB (BF16) are allocated during it. On the CPU the size is 1024^3 (12 MiB),
// and the result is the mean.
[[nodiscard]] double measured_gemm_rate(Stream& stream, DType compute, double seconds);

}  // namespace pesc
