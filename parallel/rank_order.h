// Reductions in rank order, out[i] = ((p0[i] + p1[i]) + p2[i]) + ..., which give the same bits on every rank.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

namespace pesc {

struct Sum {
  template <class T>
  static T apply(T a, T b) {
    return a + b;
  }
};

struct Max {  // a NaN on any rank is a NaN on all
  template <class T>
  static T apply(T a, T b) {
    return b > a || b != b ? b : a;
  }
};

// `pieces` holds one pointer per rank, each to n elements. `out` [n] is written and may alias a piece.
template <class Op, class T>
void reduce_in_rank_order(std::span<const T* const> pieces, int64_t n, T* out) {
  constexpr int64_t kBlock = 1024;  // stays in the first-level cache
  T sum[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t len = std::min(kBlock, n - at);
    std::memcpy(sum, pieces[0] + at, static_cast<size_t>(len) * sizeof(T));
    for (size_t r = 1; r < pieces.size(); ++r) {
      const T* piece = pieces[r] + at;
#pragma omp simd
      for (int64_t i = 0; i < len; ++i) sum[i] = Op::apply(sum[i], piece[i]);
    }
    std::memcpy(out + at, sum, static_cast<size_t>(len) * sizeof(T));
  }
}

}  // namespace pesc
