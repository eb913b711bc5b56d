// Shared by the kernels of ops/*.cu: element types, typed views, sums in a fixed order, launch sizes,
// uploads.
//
// Kernels compute in float32 whatever the element type, and use no floating-point atomics. Inside pesc::cuda
// call other operations by qualified name (pesc::gemm or cuda::gemm): an unqualified call is ambiguous.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>

#include "ops/core/arena.h"
#include "ops/core/check.h"
#include "ops/core/stream_cuda.h"
#include "ops/core/tensor.h"

namespace pesc::cuda {

using bf16 = __nv_bfloat16;

template <class T>
inline constexpr DType kDTypeOf = DType::kF32;
template <>
inline constexpr DType kDTypeOf<bf16> = DType::kBF16;
template <>
inline constexpr DType kDTypeOf<double> = DType::kF64;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::kI32;
template <>
inline constexpr DType kDTypeOf<int64_t> = DType::kI64;

// A typed tensor, passed to kernels by value.
template <class T>
struct View {
  T* data;
  int64_t rows, cols, ld;
  __device__ __forceinline__ T* row(int64_t r) const { return data + r * ld; }
};
// Throws InternalError when the dtype differs from T. An absent tensor gives data == nullptr.
template <class T>
[[nodiscard]] View<T> view(const Tensor& t) {
  PESC_CHECK(t.dtype == kDTypeOf<T>, "dtype is ", dtype_name(t.dtype), ", not ", dtype_name(kDTypeOf<T>));
  return {static_cast<T*>(t.data), t.rows, t.cols, t.ld};
}
// The same, without the check of the dtype where the tensor is absent.
template <class T>
[[nodiscard]] View<T> view_or_none(const Tensor& t) {
  return t.present() ? view<T>(t) : View<T>{nullptr, 0, 0, 0};
}
template <class T>
[[nodiscard]] T* pointer(const Tensor& t) {
  return view<T>(t).data;
}

// Elements as float32, and float32 rounded to the element type (to nearest even).
__device__ __forceinline__ float as_float(float v) {
  return v;
}
__device__ __forceinline__ float as_float(bf16 v) {
  return __bfloat162float(v);
}
template <class T>
__device__ __forceinline__ T from_float(float v) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16_rn(v);
  } else {
    return v;
  }
}

// Calls f(T{}) with T = float or bf16, the element type of the tensor:
//   with_element(x.dtype, [&](auto t) { using T = decltype(t); ... });
template <class F>
void with_element(DType dtype, F f) {
  switch (dtype) {
    case DType::kF32:
      return f(float{});
    case DType::kBF16:
      return f(bf16{});
    default:
      PESC_CHECK(false, "no kernel for ", dtype_name(dtype));
  }
}

inline constexpr int kWarp = 32;
inline constexpr int kThreads = 256;

// The number of blocks of `threads` threads for n elements, at most 2^20: kernels stride over the grid.
[[nodiscard]] inline unsigned blocks_for(int64_t n, int threads = kThreads) {
  return static_cast<unsigned>(std::clamp<int64_t>((n + threads - 1) / threads, 1, 1 << 20));
}
__device__ __forceinline__ int64_t first_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t index_step() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

// The sum and the maximum over the 32 lanes of a full warp, the same bits in every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffU, v, offset);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {  // a NaN in any lane is the result
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(0xffffffffU, v, offset);
    v = other > v || other != other ? other : v;
  }
  return v;
}

// The sum over all threads of a one-dimensional block of whole warps, in a fixed order; every thread gets it.
// All threads must call it. `T` is float or double.
template <class T>
__device__ T block_sum(T v) {
  __shared__ T partial[kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  v = warp_sum(v);
  __syncthreads();  // the call before may still be reading
  if (lane == 0) partial[warp] = v;
  __syncthreads();
  T total = partial[0];
  for (int w = 1; w < warps; ++w) total += partial[w];
  return total;
}
__device__ inline float block_max(float v) {
  __shared__ float partial[kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  v = warp_max(v);
  __syncthreads();
  if (lane == 0) partial[warp] = v;
  __syncthreads();
  float top = partial[0];
  for (int w = 1; w < warps; ++w) top = partial[w] > top || partial[w] != partial[w] ? partial[w] : top;
  return top;
}

// Copies host values to device memory from `scratch`, ordered on the stream, and returns the device pointer;
// the caller's Scope frees it. `values` may be overwritten as soon as the call returns.
template <class T>
[[nodiscard]] T* upload(Stream& stream, std::span<const T> values, Arena& scratch) {
  const auto bytes = static_cast<int64_t>(values.size_bytes());
  void* to = scratch.allocate(1, bytes, DType::kU8).data;
  upload(stream.cuda_stream(), values.data(), to, bytes);
  return static_cast<T*>(to);
}

}  // namespace pesc::cuda
