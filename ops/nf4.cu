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

constexpr int kUnrolled = 4;  // packs that a thread has on their way at once

// Values that are read and written at once: 16 bytes are written, 32 of float32.
template <class T>
inline constexpr int kValues = std::is_same_v<T, float> ? 8 : static_cast<int>(16 / sizeof(T));

struct SharedTables {
  float code[16];
  float dynamic[256];
};

// The absmaxes of a row: codes of them, or values.
struct RowAbsmax {
  const uint8_t* codes;
  const float* values;  // null where there are codes
  const float* nested;
  uint32_t first_block;
};

// The absmax of the block of a value; `at` counts from the first value of the row's first group.
__device__ __forceinline__ float absmax_of(const RowAbsmax& row, const float* dynamic, uint32_t at) {
  const uint32_t block = at / static_cast<uint32_t>(kNf4Block) - row.first_block;
  if (row.values != nullptr) return row.values[block];
  const float group = row.nested[1 + at / static_cast<uint32_t>(kNf4Group)];
  return __fadd_rn(__fmul_rn(dynamic[row.codes[block]], group), row.nested[0]);
}

// The code of value j of a run whose bytes are in `words`: two a byte, the first in the high half.
template <int kWords>
__device__ __forceinline__ uint32_t code_of(const uint32_t (&words)[kWords], int j) {
  const int k = j % 8;
  return words[j / 8] >> (k % 2 == 0 ? 4 * k + 4 : 4 * k - 4) & 15U;
}

// A row whose packs of kValues<T> stay within blocks. `factor` is multiplied into a block's absmax, which is exact for
// powers of two while nothing falls below the normal numbers.
template <class T>
struct RowOfPacks {
  const SharedTables& tables;
  const uint8_t* codes;
  RowAbsmax absmax;
  uint32_t first;
  uint32_t col;  // of the first pack
  float factor;
  T* to;
};

// kPacks packs, `step` apart: all of them are read before the first is used.
template <int kPacks, class T>
__device__ __forceinline__ void dequantize_packs(const RowOfPacks<T>& row, int pack, int step) {
  constexpr int N = kValues<T>;
  constexpr int kWords = N / 8;
  uint32_t words[kPacks][kWords];
  float scale[kPacks];
#pragma unroll
  for (int u = 0; u < kPacks; ++u) {
    const uint32_t c = row.col + static_cast<uint32_t>(pack + u * step) * N;
    if constexpr (kWords == 2) {
      const uint2 two = *reinterpret_cast<const uint2*>(row.codes + c / 2);
      words[u][0] = two.x;
      words[u][1] = two.y;
    } else {
      words[u][0] = *reinterpret_cast<const uint32_t*>(row.codes + c / 2);
    }
    scale[u] = absmax_of(row.absmax, row.tables.dynamic, row.first + c);
  }
#pragma unroll
  for (int u = 0; u < kPacks; ++u) {
    const float absolute = scale[u] * row.factor;
    T* to = row.to + int64_t{pack + u * step} * N;
    float values[N];
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = __fmul_rn(row.tables.code[code_of(words[u], j)], absolute);
    if constexpr (std::is_same_v<T, uint8_t>) {
      store_pack<N>(to, to_e4m3<N>(values, 1.0F));
    } else {
      store_floats<N>(to, values);
    }
  }
}

// Writes columns [col, col + to.cols) of w; those behind its last with 0. `scales` of E4M3. A block goes over many rows,
// so that it copies the tables once. kWide: rows by dequantize_packs where they can.
// REQUIRES with kWide: col and the columns of w are multiples of kValues<T>, rows of codes and of `to` are aligned to
// packs; a block has kThreads threads.
template <bool kWide, class T>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(Matrix w, int col, View<T> to, const float* scales,
                      const __grid_constant__ Tables all) {
  __shared__ SharedTables tables;
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  tables.dynamic[thread] = all.dynamic[thread];
  if (thread < 16) tables.code[thread] = all.code[thread];
  __syncthreads();
  const int cols = static_cast<int>(to.cols);
  PESC_FOR_ROWS(r, to.rows) {
    const uint8_t* codes = w.codes + r * w.codes_ld;
    const auto first = static_cast<uint32_t>(w.first[r * w.first_ld]);
    RowAbsmax absmax{nullptr, nullptr, nullptr, first / static_cast<uint32_t>(kNf4Block)};
    if (w.absmax_values != nullptr) {
      absmax.values = w.absmax_values + r * w.absmax_ld;
    } else {
      absmax.codes = w.absmax + r * w.absmax_ld;
      absmax.nested = w.nested + r * w.nested_ld;
    }
    const float inverse = scales == nullptr ? 1.0F : inverse_power_of_two(scales[r]);
    int done = 0;
    if constexpr (kWide) {
      // A row of so small values could have ones that are not normal.
      if (first % kValues<T> == 0 && inverse < 0x1p100F) {
        const RowOfPacks<T> row{tables, codes, absmax, first, static_cast<uint32_t>(col), inverse, to.row(r)};
        const int packs = min(cols, w.cols - col) / kValues<T>;
        const int step = static_cast<int>(blockDim.x);
        int pack = static_cast<int>(threadIdx.x);
        for (; pack + (kUnrolled - 1) * step < packs; pack += kUnrolled * step)
          dequantize_packs<kUnrolled>(row, pack, step);
        for (; pack < packs; pack += step) dequantize_packs<1>(row, pack, step);
        done = packs * kValues<T>;
      }
    }
    for (int i = done + static_cast<int>(threadIdx.x); i < cols; i += static_cast<int>(blockDim.x)) {
      const int c = col + i;
      float value = 0;
      if (c < w.cols) {
        const uint32_t four = (c % 2 == 0 ? codes[c / 2] >> 4 : codes[c / 2]) & 15U;
        value =
            __fmul_rn(tables.code[four], absmax_of(absmax, tables.dynamic, first + static_cast<uint32_t>(c)));
      }
      if constexpr (std::is_same_v<T, uint8_t>) {
        to.row(r)[i] = to_e4m3(value * inverse);
      } else {
        to.row(r)[i] = from_float<T>(value);
      }
    }
  }
}

template <class T>
void launch(Stream& stream, const Nf4Matrix& w, int64_t col, const Tensor& to, const float* scales) {
  if (to.size() == 0) return;
  constexpr int64_t kWidth = kValues<T>;
  const Matrix m = matrix(w);
  const View<T> out = view<T>(to);
  // Rows start on packs of codes and of `to`; w may end within a pack of `to`.
  const auto aligned = [](const Tensor& t, int64_t elements) {
    const int64_t bytes = std::min<int64_t>(elements * dtype_bytes(t.dtype), 16);
    return (t.rows <= 1 || t.ld * dtype_bytes(t.dtype) % bytes == 0) &&
           reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) == 0;
  };
  const bool wide = col % kWidth == 0 && aligned(w.codes, kWidth / 2) && aligned(to, kWidth);
  const auto kernel = wide ? dequantize_kernel<true, T> : dequantize_kernel<false, T>;
  WholeRowGrid g(to.rows, to.cols / (wide ? kWidth : 1));
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
