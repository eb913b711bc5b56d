// Vectorised elementwise parts of causal attention on the CPU, on tiles of a few rows of scores: the softmax
// of the forward and the score gradients of the backward. Rows are `ld` floats apart and padded to whole
// vectors.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/core/micro_gemm.h"
#include "ops/core/vector_math.h"

namespace pesc {

namespace detail {

[[gnu::always_inline]] inline Lanes exp_lanes(Lanes x) {
  return exponential<Lanes, LaneInts, LaneWords>(x);
}

}  // namespace detail

// The causal mask of a tile: row r attends to its first seen + r * growth keys. All rows attend to the keys
// before `first` (a multiple of kLanes); from `first` to `width`, mask() selects the keys of a row.
struct Edge {
  int64_t first, width, seen, growth;
  Edge(int64_t seen_first, int64_t rows, int64_t more)
      : first(seen_first & -kLanes),
        width(round_up(seen_first + (rows - 1) * more, kLanes)),
        seen(seen_first),
        growth(more) {}
  [[nodiscard]] detail::LaneInts mask(int64_t row, int64_t key) const {
    detail::LaneInts lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    return lane < static_cast<int32_t>(seen + row * growth - key);
  }
};

struct RowSum {
  float max;
  float sum;
};

// Replaces the scores s of R rows by exp(scale (s - max)), and by 0 at masked keys; sums[r] is written with
// {scale max, sum}. The rows are interleaved, since one short row alone would be bound by latency.
template <int R>
void exp_rows(float* p, int64_t ld, const Edge& edge, int64_t first_row, float scale, RowSum* sums) {
  using detail::Lanes;
  using detail::load;
  using detail::store;
  for (int64_t j = edge.first; j < edge.width; j += kLanes)
    for (int r = 0; r < R; ++r)
      store(p + r * ld + j, edge.mask(first_row + r, j) ? load(p + r * ld + j) : Lanes{} - INFINITY);
  Lanes top[R];
  Lanes sum[R];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) top[r] = load(p + r * ld);
  for (int64_t j = kLanes; j < edge.width; j += kLanes)
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const Lanes s = load(p + r * ld + j);
      top[r] = s > top[r] ? s : top[r];
    }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    float most = top[r][0];
    for (int i = 1; i < kLanes; ++i) most = top[r][i] > most ? top[r][i] : most;
    sums[r].max = most * scale;
    top[r] = Lanes{} + most;
    sum[r] = Lanes{};
  }
  for (int64_t j = 0; j < edge.width; j += kLanes)
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const Lanes e = detail::exp_lanes((load(p + r * ld + j) - top[r]) * scale);
      store(p + r * ld + j, e);
      sum[r] += e;
    }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    float total = 0;
    for (int i = 0; i < kLanes; ++i) total += sum[r][i];
    sums[r].sum = total;
  }
}

// Both p and ds are 0 at masked keys.
struct GradientRows {
  float* p;   // the scores s, overwritten by exp(scale s - lse)
  float* ds;  // dp, overwritten by scale p (dp - delta)
  int64_t ld, rows;
  float scale;
  const float *lse, *delta;  // of each row
};
inline void gradient_rows(const GradientRows& args, const Edge& edge) {
  auto [p, ds, ld, rows, scale, lse, delta] = args;
  using detail::Lanes;
  using detail::load;
  using detail::store;
  for (int64_t r = 0; r < rows; ++r, p += ld, ds += ld) {
    for (int64_t j = 0; j < edge.width; j += kLanes) {
      Lanes e = detail::exp_lanes(load(p + j) * scale - lse[r]);
      if (j >= edge.first) e = edge.mask(r, j) ? e : Lanes{};
      store(p + j, e);
      store(ds + j, e * (load(ds + j) - delta[r]) * scale);
    }
  }
}

}  // namespace pesc
