// FP8 E4M3 in kernels: the conversions of ops/core/e4m3.h by instructions of the GPU, the same bits.
#pragma once

#include <cuda_fp8.h>

#include "ops/core/e4m3.h"
#include "ops/core/vectors.cuh"

namespace pesc::cuda {

template <>
inline constexpr DType kDTypeOf<uint8_t> = DType::kE4M3;  // the codes

__device__ __forceinline__ uint8_t to_e4m3(float v) {
  return static_cast<uint8_t>(__nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3));
}
__device__ __forceinline__ float from_e4m3(uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

// The codes of N values times `factor`, two with an instruction.
template <int N>
__device__ __forceinline__ Pack<uint8_t, N> to_e4m3(const float (&v)[N], float factor) {
  Pack<uint8_t, N> out;
  if constexpr (N % 2 == 0) {
    uint16_t pairs[N / 2];
#pragma unroll
    for (int j = 0; j < N / 2; ++j) {
      const float2 two = make_float2(v[2 * j] * factor, v[2 * j + 1] * factor);
      pairs[j] = __nv_cvt_float2_to_fp8x2(two, __NV_SATFINITE, __NV_E4M3);
    }
    memcpy(&out, pairs, sizeof(out));
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = to_e4m3(v[j] * factor);
  }
  return out;
}

// The larger of `before` and the magnitudes of N values, as the bits of a float: these rise with it, and those
// of infinity and then of NaN are above all others, so that e4m3_scale sees a row that is not finite.
template <int N>
__device__ __forceinline__ uint32_t largest_bits(const float (&v)[N], uint32_t before) {
#pragma unroll
  for (int j = 0; j < N; ++j) before = max(before, __float_as_uint(v[j]) & 0x7FFFFFFFU);
  return before;
}
// The largest of a one-dimensional block of whole warps, in every thread. All threads must call it. `partial` is
// shared memory that no thread still reads from an earlier call: two of them in turn need no other barrier.
__device__ __forceinline__ uint32_t block_largest(uint32_t v, uint32_t (&partial)[kWarp]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  v = __reduce_max_sync(0xFFFFFFFFU, v);
  if (lane == 0) partial[static_cast<int>(threadIdx.x) / kWarp] = v;
  __syncthreads();
  return __reduce_max_sync(0xFFFFFFFFU, lane < static_cast<int>(blockDim.x) / kWarp ? partial[lane] : 0U);
}

// The scale of a row, and what its values are multiplied with: 0 for codes 0 where the row is not finite.
struct RowScale {
  float scale, inverse;
  bool finite;
  __device__ __forceinline__ explicit RowScale(uint32_t largest)
      : scale(e4m3_scale(std::bit_cast<float>(largest))), inverse(0), finite(largest < 0x7F800000U) {
    if (finite) inverse = inverse_power_of_two(scale);
  }
  // The codes of N values of the row.
  template <int N>
  __device__ __forceinline__ Pack<uint8_t, N> codes(const float (&v)[N]) const {
    return finite ? to_e4m3<N>(v, inverse) : Pack<uint8_t, N>{};
  }
};

}  // namespace pesc::cuda
