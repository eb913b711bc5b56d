// NF4 on a GPU: see ops/nf4.h. Each operation is rounded by itself, so that the values have the bits of the
// CPU's.
#include "ops/core/e4m3.cuh"
#include "ops/cuda_ops.h"
#include "ops/nf4.h"

namespace pesc::cuda {
namespace {

struct Tables {
  float code[16];
  float dynamic[256];
};
Tables tables() {
  Tables t;
  std::copy(nf4_code().begin(), nf4_code().end(), t.code);
  std::copy(dynamic_code().begin(), dynamic_code().end(), t.dynamic);
  return t;
}

// As Nf4Matrix, typed.
struct Matrix {
  const uint8_t* codes;
  const uint8_t* absmax;
  const float* nested;
  const int32_t* first;
  int64_t codes_ld, absmax_ld, nested_ld, first_ld;
  int cols;
};
Matrix matrix(const Nf4Matrix& w) {
  PESC_CHECK(w.codes.dtype == DType::kU8 && w.absmax.dtype == DType::kU8, dtype_name(w.codes.dtype),
             " codes");
  PESC_CHECK(w.cols < (int64_t{1} << 30), w.cols, " columns");
  return {static_cast<const uint8_t*>(w.codes.data),
          static_cast<const uint8_t*>(w.absmax.data),
          pointer<const float>(w.nested),
          pointer<const int32_t>(w.first),
          w.codes.ld,
          w.absmax.ld,
          w.nested.ld,
          w.first.ld,
          static_cast<int>(w.cols)};
}

constexpr int kUnrolled = 4;  // packs that a thread has on their way at once

// The absmax of the block of a value; `at` counts from the first value of the row's first group.
__device__ __forceinline__ float absmax_of(const uint8_t* absmax, const float* nested, const float* dynamic,
                                           int first_block, int at) {
  const float group = nested[1 + at / static_cast<int>(kNf4Group)];
  return __fadd_rn(__fmul_rn(dynamic[absmax[at / static_cast<int>(kNf4Block) - first_block]], group),
                   nested[0]);
}

// Writes columns [col, col + to.cols) of w; those behind its last with 0. `scales` of E4M3. N is 8 or 1. A block
// goes over many rows, so that it copies the tables once.
// REQUIRES with N = 8: col, the columns of w and of `to` are multiples of 8, rows of codes are aligned to 4
// bytes, rows of `to` to packs; a block has kThreads threads.
template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(Matrix w, int col, View<T> to, const float* scales,
                      const __grid_constant__ Tables all) {
  __shared__ float code[16];
  __shared__ float dynamic[256];
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  dynamic[thread] = all.dynamic[thread];
  if (thread < 16) code[thread] = all.code[thread];
  __syncthreads();
  const int packs = static_cast<int>(to.cols / N);
  const int step = static_cast<int>(blockDim.x);
  PESC_FOR_ROWS(r, to.rows) {
    const uint8_t* codes = w.codes + r * w.codes_ld;
    const uint8_t* absmax = w.absmax + r * w.absmax_ld;
    const float* nested = w.nested + r * w.nested_ld;
    const int first = w.first[r * w.first_ld];
    const int first_block = first / static_cast<int>(kNf4Block);
    const float inverse = scales == nullptr ? 1.0F : inverse_power_of_two(scales[r]);
    const bool whole = first % N == 0;  // no pack reaches over the end of a block
    for (int pack = static_cast<int>(threadIdx.x); pack < packs; pack += kUnrolled * step) {
      uint32_t bytes[kUnrolled];
      float scale[kUnrolled];
#pragma unroll
      for (int u = 0; u < kUnrolled; ++u) {
        const int c = col + (pack + u * step) * N;
        bytes[u] = 0;
        scale[u] = 0;
        if (pack + u * step >= packs || c >= w.cols) continue;
        if constexpr (N == 8) {
          bytes[u] = *reinterpret_cast<const uint32_t*>(codes + c / 2);
        } else {
          bytes[u] = c % 2 == 0 ? codes[c / 2] : static_cast<uint32_t>(codes[c / 2]) << 4;
        }
        scale[u] = absmax_of(absmax, nested, dynamic, first_block, first + c);
      }
#pragma unroll
      for (int u = 0; u < kUnrolled; ++u) {
        const int c = col + (pack + u * step) * N;
        if (pack + u * step >= packs) break;
        float values[N] = {};
        if (c < w.cols) {
#pragma unroll
          for (int j = 0; j < N; ++j) {
            if (!whole && (first + c + j) % static_cast<int>(kNf4Block) == 0)
              scale[u] = absmax_of(absmax, nested, dynamic, first_block, first + c + j);
            const uint32_t four = bytes[u] >> (j % 2 == 0 ? 4 * j + 4 : 4 * j - 4) & 15U;
            values[j] = __fmul_rn(code[four], scale[u]);
          }
        }
        T* out = to.row(r) + int64_t{pack + u * step} * N;
        if constexpr (std::is_same_v<T, uint8_t>) {
          store_pack<N>(out, to_e4m3<N>(values, inverse));
        } else {
          store_floats<N>(out, values);
        }
      }
    }
  }
}

template <class T>
void launch(Stream& stream, const Nf4Matrix& w, int64_t col, const Tensor& to, const float* scales) {
  if (to.size() == 0) return;
  const Matrix m = matrix(w);
  const View<T> out = view<T>(to);
  const bool wide = col % 8 == 0 && w.cols % 8 == 0 && packs(to, 8) && w.codes.ld % 4 == 0 &&
                    reinterpret_cast<uintptr_t>(w.codes.data) % 4 == 0;
  WholeRowGrid g(to.rows, to.cols / (wide ? 8 : 1));
  const auto kernel = wide ? dequantize_kernel<8, T> : dequantize_kernel<1, T>;
  g.grid.y = resident_blocks(stream, kernel, g.grid.y, kThreads, 0);
  kernel<<<g.grid, g.block, 0, stream_of(stream)>>>(m, static_cast<int>(col), out, scales, tables());
  PESC_LAUNCHED("nf4_dequantize");
}

}  // namespace

void nf4_dequantize(Stream& stream, const Nf4Matrix& w, int64_t col, const Tensor& to) {
  with_element(to.dtype, [&](auto t) { launch<decltype(t)>(stream, w, col, to, nullptr); });
}

void nf4_to_fp8(Stream& stream, const Nf4Matrix& w, const Tensor& scales, const Tensor& codes) {
  PESC_CHECK(scales.contiguous(), "scales with a stride");
  launch<uint8_t>(stream, w, 0, codes, pointer<const float>(scales));
}

}  // namespace pesc::cuda
