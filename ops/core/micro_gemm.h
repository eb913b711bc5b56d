// Small GEMMs in registers: C [m, n] = or += A [m, k] B [k, n] with m <= kTileRows and a packed B. For the
// inner loops of attention, whose tiles are too small and too triangular for a BLAS call each.
//
// B is packed in panels of kPanel columns: panel p holds columns [p kPanel, (p + 1) kPanel) as [k][kPanel],
// zero beyond n. A is read element by element at any strides, so that A^T needs no copy. The 6 x 2 vectors of
// accumulators of a tile fit the registers of AVX2 (8 lanes) and AVX-512 (16 lanes).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

namespace pesc {

#if defined(__AVX512F__)
inline constexpr int64_t kLanes = 16;
#elif defined(__AVX__)
inline constexpr int64_t kLanes = 8;
#else
inline constexpr int64_t kLanes = 4;
#endif
inline constexpr int64_t kPanel = 2 * kLanes;
inline constexpr int64_t kTileRows = 6;

[[nodiscard]] constexpr int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

// Element (i, l) of A is at data[i * row + l * col].
struct Strided {
  const float* data;
  int64_t row;
  int64_t col;
};

// Row l of panel p of B is at data + p * panel + l * row. A row-major B whose n is a multiple of kLanes may
// be read in place: row = its row stride, panel = kPanel.
struct Panels {
  const float* data;
  int64_t row;
  int64_t panel;
};

enum class Into { kWrite, kAdd };

namespace detail {

using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));

// Unaligned loads and stores.
[[nodiscard, gnu::always_inline]] inline Lanes load(const float* from) {
  Lanes x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}
[[gnu::always_inline]] inline void store(float* to, const Lanes& x) {
  std::memcpy(to, &x, sizeof(x));
}

// c [R, V * kLanes] = or += a [R, k] b [k, V * kLanes]
template <int R, int V, Into into>
inline void tile(int64_t k, const Strided& a, const float* b, int64_t b_row, float* c, int64_t ldc) {
  Lanes sum[R][V];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[r][v] = Lanes{};
  const float* at = a.data;
  for (int64_t l = 0; l < k; ++l, b += b_row, at += a.col) {
    Lanes row[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) row[v] = load(b + v * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] += at[r * a.row] * row[v];
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      float* to = c + r * ldc + v * kLanes;
      store(to, into == Into::kAdd ? load(to) + sum[r][v] : sum[r][v]);
    }
  }
}

template <int V, Into into>
inline void tile_rows(int64_t rows, int64_t k, const Strided& a, const float* b, int64_t b_row, float* c,
                      int64_t ldc) {
  switch (rows) {
    case 6:
      return tile<6, V, into>(k, a, b, b_row, c, ldc);
    case 5:
      return tile<5, V, into>(k, a, b, b_row, c, ldc);
    case 4:
      return tile<4, V, into>(k, a, b, b_row, c, ldc);
    case 3:
      return tile<3, V, into>(k, a, b, b_row, c, ldc);
    case 2:
      return tile<2, V, into>(k, a, b, b_row, c, ldc);
    default:
      return tile<1, V, into>(k, a, b, b_row, c, ldc);
  }
}

using LaneInts = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));
using LaneWords = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));

// The first halves of two vectors interleaved, with offset = 0; the second halves with kLanes / 2.
template <int64_t offset, size_t... I>
[[gnu::always_inline]] inline Lanes interleave(const Lanes& a, const Lanes& b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b,
                                 (static_cast<int>(I / 2 + I % 2 * kLanes) + static_cast<int>(offset))...);
}
[[gnu::always_inline]] inline Lanes interleave_low(const Lanes& a, const Lanes& b) {
  return interleave<0>(a, b, std::make_index_sequence<kLanes>());
}
[[gnu::always_inline]] inline Lanes interleave_high(const Lanes& a, const Lanes& b) {
  return interleave<kLanes / 2>(a, b, std::make_index_sequence<kLanes>());
}

// Exchanges rows and columns of a kLanes x kLanes block in log2(kLanes) rounds of interleaving the first half
// of the rows with the second.
inline void transpose_block(const float* from, int64_t ld, float* to, int64_t to_ld) {
  Lanes rows[kLanes];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes; ++i) rows[i] = load(from + i * ld);
#pragma GCC unroll 4
  for (int64_t round = 1; round < kLanes; round *= 2) {
    Lanes next[kLanes];
#pragma GCC unroll 8
    for (int64_t i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + kLanes / 2]);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes; ++i) store(to + i * to_ld, rows[i]);
}

}  // namespace detail

// out[j] = sum over d < dim of a[j * lda + d] b[j * ldb + d] for j < n. The horizontal sums of kLanes vectors
// are computed at once, by interleaving them.
inline void dot_rows(int64_t n, int64_t dim, const float* a, int64_t lda, const float* b, int64_t ldb,
                     float* out) {
  const int64_t whole = dim & -kLanes;
  for (int64_t first = 0; first < n; first += kLanes) {
    const int64_t last = std::min(first + kLanes, n) - 1;
    detail::Lanes sums[kLanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t j = std::min(first + i, last);
      sums[i] = detail::Lanes{};
      for (int64_t d = 0; d < whole; d += kLanes)
        sums[i] += detail::load(a + j * lda + d) * detail::load(b + j * ldb + d);
    }
#pragma GCC unroll 4
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
      for (int64_t i = 0; i < half; ++i)
        sums[i] = detail::interleave_low(sums[i], sums[i + half]) +
                  detail::interleave_high(sums[i], sums[i + half]);
    for (int64_t j = first; j <= last; ++j) out[j] = sums[0][j - first];
    if (whole == dim) continue;
    for (int64_t j = first; j <= last; ++j)
      for (int64_t d = whole; d < dim; ++d) out[j] += a[j * lda + d] * b[j * ldb + d];
  }
}

// C [m, n] = or += A [m, k] B [k, n], m <= kTileRows. c needs no padding: it is written up to column n only.
template <Into into>
inline void multiply_rows(int64_t m, int64_t n, int64_t k, const Strided& a, const Panels& b, float* c,
                          int64_t ldc) {
  const float* panel = b.data;
  for (int64_t column = 0; column < n; column += kPanel, panel += b.panel) {
    const int64_t left = n - column;
    if (left >= kPanel) {
      detail::tile_rows<2, into>(m, k, a, panel, b.row, c + column, ldc);
    } else if (left == kLanes) {
      detail::tile_rows<1, into>(m, k, a, panel, b.row, c + column, ldc);
    } else {
      float whole[kTileRows * kPanel];
      detail::tile_rows<2, Into::kWrite>(m, k, a, panel, b.row, whole, kPanel);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < left; ++j) {
          float& to = c[i * ldc + column + j];
          to = into == Into::kAdd ? to + whole[i * kPanel + j] : whole[i * kPanel + j];
        }
    }
  }
}

// Packs x [k, n] as B. `out` holds k * round_up(n, kPanel); panel stride k * kPanel.
inline Panels pack_panels(const float* x, int64_t ld, int64_t k, int64_t n, float* out) {
  for (int64_t column = 0; column < n; column += kPanel) {
    const int64_t width = std::min(n - column, kPanel);
    float* to = out + column * k;
    for (int64_t l = 0; l < k; ++l, to += kPanel) {
      const float* from = x + l * ld + column;
      if (width == kPanel) {
        std::memcpy(to, from, kPanel * sizeof(float));
      } else {
        std::copy_n(from, width, to);
        std::fill(to + width, to + kPanel, 0.0F);
      }
    }
  }
  return {out, kPanel, k * kPanel};
}

// Packs the transpose of x [n, k] as B [k, n]. `out` as in pack_panels.
inline Panels pack_transposed(const float* x, int64_t ld, int64_t k, int64_t n, float* out) {
  for (int64_t first = 0; first < n; first += kLanes) {
    float* to = out + first / kPanel * kPanel * k + first % kPanel;
    const int64_t rows = std::min(n - first, kLanes);
    int64_t l = 0;
    if (rows == kLanes)
      for (; l + kLanes <= k; l += kLanes)
        detail::transpose_block(x + first * ld + l, ld, to + l * kPanel, kPanel);
    for (; l < k; ++l) {
      for (int64_t j = 0; j < rows; ++j) to[l * kPanel + j] = x[(first + j) * ld + l];
      std::fill(to + l * kPanel + rows, to + l * kPanel + kLanes, 0.0F);
    }
  }
  // The other half of the last panel.
  if (round_up(n, kLanes) % kPanel != 0)
    for (int64_t l = 0; l < k; ++l)
      std::fill_n(out + n / kPanel * kPanel * k + l * kPanel + kLanes, kLanes, 0.0F);
  return {out, kPanel, k * kPanel};
}

}  // namespace pesc
