// The GEMM rate that the speed of light is measured against.
#pragma once

#include "ops/core/device.h"

namespace pesc {

// FLOP/s of this rank: the median over at least `seconds` of back-to-back square products of random values in
// the compute type, which all ranks should measure at the same time. On a GPU 8192^3, each product timed by
// the device; takes 384 MiB in BF16 while it runs. On the CPU 1024^3, the mean (12 MiB).
[[nodiscard]] double measured_gemm_rate(Stream& stream, DType compute, double seconds);

}  // namespace pesc
