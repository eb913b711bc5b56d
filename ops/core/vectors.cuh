// Rows of vectors: 16-byte loads and stores where base, stride and width allow them, single elements where
// they do not, and the grid of a loop over [rows, vectors].
#pragma once

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <type_traits>

#include "ops/core/launch.cuh"

namespace pesc::cuda {

template <class T>
inline constexpr DType kDTypeOf<const T> = kDTypeOf<T>;

// N elements that are loaded and stored at once; the address must be a multiple of the alignment.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T v[N];
};
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <int N, class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}
// The same as float32.
template <int N, class T>
__device__ __forceinline__ void load_floats(const T* p, float (&out)[N]) {
  const Pack<T, N> pack = load_pack<N>(p);
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = as_float(pack.v[i]);
}
template <int N, class T>
__device__ __forceinline__ void store_floats(T* p, const float (&in)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(in[i]);
  store_pack<N>(p, pack);
}

// Elements of T in 16 bytes.
template <class T>
inline constexpr int kPack = static_cast<int>(16 / sizeof(T));

// Whether rows of the tensor can be read in packs of n elements: columns, row stride and address allow it.
[[nodiscard]] inline bool packs(const Tensor& t, int64_t n) {
  const int64_t bytes = std::min<int64_t>(16, n * dtype_bytes(t.dtype));
  return t.cols % n == 0 && (t.rows <= 1 || t.ld % n == 0) &&
         reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) == 0;
}
// Calls f(N) with N = kPack<T> where all present tensors allow it, else with N = 1:
//   with_pack<T>({x, y}, [&](auto n) { constexpr int N = decltype(n)::value; ... });
template <class T, class F>
void with_pack(std::initializer_list<Tensor> tensors, F f) {
  for (const Tensor& t : tensors)
    if (t.present() && !packs(t, kPack<T>)) return f(std::integral_constant<int, 1>{});
  f(std::integral_constant<int, kPack<T>>{});
}

// Blocks of kThreads threads over [rows, n]: x along a row, y over rows. Kernels stride over both:
//   PESC_FOR_ROWS(r, rows) { PESC_FOR_COLUMNS(i, n) { ... } }
struct RowGrid {
  dim3 grid, block;
  RowGrid(int64_t rows, int64_t n) {
    unsigned x = 1;
    while (x < kThreads && x < n) x *= 2;
    block = dim3(x, kThreads / x);
    grid = dim3(static_cast<unsigned>(std::clamp<int64_t>((n + x - 1) / x, 1, 1 << 16)),
                static_cast<unsigned>(std::clamp<int64_t>((rows + block.y - 1) / block.y, 1, 65535)));
  }
};
// The same, but a block covers whole rows, so that a thread takes several vectors of one row: for kernels
// that first compute something once per row, such as the key of its dropout mask.
struct WholeRowGrid {
  dim3 grid, block;
  WholeRowGrid(int64_t rows, int64_t n) {
    unsigned x = 1;
    while (x < kThreads && 4 * x < n) x *= 2;
    block = dim3(x, kThreads / x);
    grid = dim3(1, static_cast<unsigned>(std::clamp<int64_t>((rows + block.y - 1) / block.y, 1, 65535)));
  }
};
// For kernels that stride over rows by a grid that the GPU holds at once: its number of blocks, at most `rows`. Takes
// care of shared memory above 48 KiB.
template <class Kernel>
[[nodiscard]] unsigned resident_blocks(const Stream& stream, Kernel kernel, int64_t rows, unsigned threads,
                                       int64_t shared_bytes) {
  int blocks = 0;
  PESC_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)));
  PESC_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, static_cast<int>(threads),
                                                          static_cast<size_t>(shared_bytes)));
  const int64_t most = int64_t{std::max(blocks, 1)} * stream.cuda_stream().multiprocessors;
  return static_cast<unsigned>(std::clamp<int64_t>(rows, 1, most));
}
#define PESC_FOR_ROWS(r, count)                                                              \
  for (int64_t r = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; r < (count); \
       r += static_cast<int64_t>(gridDim.y) * blockDim.y)
#define PESC_FOR_COLUMNS(c, count)                                                           \
  for (int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; c < (count); \
       c += static_cast<int64_t>(gridDim.x) * blockDim.x)

// A contiguous tensor as one row.
[[nodiscard]] inline Tensor flat(const Tensor& t) {
  return t.reshaped(1, t.size());
}

// Reports an index that is out of range: prints a line and traps. The next check of the stream then throws
// InternalError.
__device__ __noinline__ inline void bad_index(const char* what, int64_t value, int64_t limit) {
  printf("pesc: check failed on the GPU: %s is %lld, not in [0, %lld)\n", what, static_cast<long long>(value),
         static_cast<long long>(limit));
  __trap();
}
__device__ __forceinline__ void check_index(const char* what, int64_t value, int64_t limit) {
  if (value < 0 || value >= limit) bad_index(what, value, limit);
}

// The stream's workspace, for partial sums of one operation. cuBLASLt uses the same memory: its contents are
// lost at the next GEMM or reduction on the stream.
template <class T>
[[nodiscard]] T* partials(const Stream& stream, int64_t count) {
  PESC_CHECK(count * static_cast<int64_t>(sizeof(T)) <= CudaStream::kWorkspaceBytes, count,
             " partial results");
  return static_cast<T*>(stream.cuda_stream().workspace);
}

}  // namespace pesc::cuda
