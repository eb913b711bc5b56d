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

}  // namespace pesc::cuda
