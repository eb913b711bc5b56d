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
  const uint8_t* absmax;       // null where they are F32
  const float* absmax_values;  // F32
  const float* nested;
  const int32_t* first;
  int64_t codes_ld, absmax_ld, nested_ld, first_ld;
  int cols;
};
Matrix matrix(const Nf4Matrix& w) {
  const bool plain = w.absmax.dtype == DType::kF32;
  PESC_CHECK(w.codes.dtype == DType::kU8 && (plain || w.absmax.dtype == DType::kU8),
             dtype_name(w.codes.dtype), " codes, ", dtype_name(w.absmax.dtype), " absmaxes");
  PESC_CHECK(w.cols < (int64_t{1} << 30), w.cols, " columns");
  return {static_cast<const uint8_t*>(w.codes.data),
          plain ? nullptr : static_cast<const uint8_t*>(w.absmax.data),
          plain ? pointer<const float>(w.absmax) : nullptr,
          plain ? nullptr : pointer<const float>(w.nested),
          pointer<const int32_t>(w.first),
          w.codes.ld,
          w.absmax.ld,
          w.nested.ld,
          w.first.ld,
          static_cast<int>(w.cols)};
}

template <class T>
__device__ __forceinline__ T rounded(float v, float) {
  return from_float<T>(v);
}
template <>
__device__ __forceinline__ uint8_t rounded<uint8_t>(float v, float inverse) {
  return to_e4m3(v * inverse);
}

// Writes columns [col, col + to.cols) of w; those behind its last with 0. `scales` of E4M3. N is 8 or 1.
// REQUIRES with N = 8: col, the columns of w and of `to` are multiples of 8, rows of codes are aligned to 4
// bytes, rows of `to` to packs; a block has kThreads threads.
template <int N, class T>
__global__ void dequantize_kernel(Matrix w, int col, View<T> to, const float* scales,
                                  const __grid_constant__ Tables all) {
  __shared__ float code[16];
  __shared__ float dynamic[256];
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  dynamic[thread] = all.dynamic[thread];
  if (thread < 16) code[thread] = all.code[thread];
  __syncthreads();
  PESC_FOR_ROWS(r, to.rows) {
    const uint8_t* codes = w.codes + r * w.codes_ld;
    const int64_t absmax = r * w.absmax_ld;
    const float* nested = w.nested + r * w.nested_ld;
    const int first = w.first[r * w.first_ld];
    const int first_block = first / static_cast<int>(kNf4Block);
    const float inverse = scales == nullptr ? 1.0F : inverse_power_of_two(scales[r]);
    PESC_FOR_COLUMNS(pack, to.cols / N) {
      const int c = col + static_cast<int>(pack) * N;
      Pack<T, N> out{};
      if (c < w.cols) {
        uint32_t bytes = 0;
        if constexpr (N == 8) {
          bytes = *reinterpret_cast<const uint32_t*>(codes + c / 2);
        } else {
          bytes = c % 2 == 0 ? codes[c / 2] : static_cast<uint32_t>(codes[c / 2]) << 4;
        }
        int block = -1;
        float scale = 0;
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const int at = first + c + j;
          if (at / static_cast<int>(kNf4Block) != block) {
            block = at / static_cast<int>(kNf4Block);
            if (w.absmax_values != nullptr) {
              scale = w.absmax_values[absmax + block - first_block];
            } else {
              const float group = nested[1 + at / static_cast<int>(kNf4Group)];
              scale = __fadd_rn(__fmul_rn(dynamic[w.absmax[absmax + block - first_block]], group), nested[0]);
            }
          }
          const uint32_t four = bytes >> (j % 2 == 0 ? 4 * j + 4 : 4 * j - 4) & 15U;
          out.v[j] = rounded<T>(__fmul_rn(code[four], scale), inverse);
        }
      }
      store_pack<N>(to.row(r) + pack * N, out);
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
  // A thread takes several packs of a row, so that the tables are copied less often.
  const WholeRowGrid g(to.rows, to.cols / (wide ? 8 : 1));
  if (wide) {
    dequantize_kernel<8, T>
        <<<g.grid, g.block, 0, stream_of(stream)>>>(m, static_cast<int>(col), out, scales, tables());
  } else {
    dequantize_kernel<1, T>
        <<<g.grid, g.block, 0, stream_of(stream)>>>(m, static_cast<int>(col), out, scales, tables());
  }
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
