// GEMM of FP8 operands with a scale for each row of A and of B:
//   C [m, n] = diag(a_scales) A B^T diag(b_scales) + beta C,   A [m, k], B [n, k] E4M3
// On a GPU: cuBLASLt (ops/fp8_gemm.cu), on Hopper (compute capability 9.0) only. On the CPU a plain form in
// double precision, for tests: CPU ranks multiply dequantised weights with activations that are not quantised.
#pragma once

#include "ops/core/arena.h"
#include "ops/core/device.h"

namespace pesc {

// How Hopper's tensor cores add up products. kFast keeps about 14 bits of a sum along all of k; kFull adds
// partial sums of 128 products in float32, at 0.92 of the speed. Against float64 sums of the same operands kFull is
// off by 0.013 %, kFast by 0.13 % (k = 4096) to 0.37 % (k = 22016), of which 0.02 to 0.07 % make all sums smaller;
// rounding both operands to e4m3 costs 3.7 to 3.8 % (tests/ops/fp8_gemm_gpu_test.cc). So kFast adds less than a
// hundredth to the error, and the model uses it in both directions.
enum class Fp8Accumulation { kFull, kFast };

struct Fp8Gemm {
  Tensor a;         // [m, k] E4M3
  Tensor a_scales;  // [m, 1] F32
  Tensor b;         // [n, k] E4M3
  Tensor b_scales;  // [n, 1] F32; absent: 1
  Tensor c;         // [m, n] F32; on CUDA BF16
  float beta = 0.0F;
  Fp8Accumulation accumulation = Fp8Accumulation::kFast;
};
// REQUIRES on a GPU: k, n and the row strides of A and B are multiples of 16, that of C is of 8; addresses are
// multiples of 16 bytes.
void fp8_gemm(Stream& stream, const Fp8Gemm& args, Arena& scratch);
// Scratch bytes of it: the scales of B where they are absent.
[[nodiscard]] int64_t fp8_gemm_scratch_bytes(const Device& device, int64_t n);

// Whether the GPU multiplies FP8 here: Ada and Blackwell are refused until they are tried.
[[nodiscard]] inline bool multiplies_fp8(const cuda::DeviceInfo& info) {
  return info.major == 9 && info.minor == 0;
}

}  // namespace pesc
