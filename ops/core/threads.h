// Parallel loops on OpenMP. A loop is split into at most stream.threads() equal ranges, which depend on its
// length, its grain and the number of threads only. A loop is therefore deterministic where its ranges write
// disjoint memory and sums do not cross ranges.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "ops/core/device.h"

namespace pesc {

// Calls f(begin, end) on ranges that cover [0, n): at most one per thread, none shorter than `grain` (>= 1)
// unless n is. A single range runs on the calling thread. REQUIRES: `f` does not throw; check arguments
// before the loop.
template <class F>
void parallel_for(const Stream& stream, int64_t n, int64_t grain, F f) {
  if (n <= 0) return;
  const int64_t pieces = std::min<int64_t>(stream.threads(), n / std::max<int64_t>(grain, 1));
  if (pieces <= 1) {
    f(int64_t{0}, n);
    return;
  }
  [[maybe_unused]] const int threads = static_cast<int>(pieces);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int64_t p = 0; p < pieces; ++p) f(n * p / pieces, n * (p + 1) / pieces);
}

// The grain of a loop over rows of `cols` elements with little work per element: one more thread pays off
// from about 16k elements.
[[nodiscard]] inline int64_t row_grain(int64_t cols) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(cols, 1));
}

// The number of rows that fit the second-level caches of the stream's threads, where `row_bytes` counts one
// row of every tensor that a chain of operations touches. The chain then processes so many rows at a time,
// and each operation reads from the cache what the one before wrote. Returns INT64_MAX (all rows) on a GPU,
// and where fewer than `fewest` rows fit, since with fewer the operations themselves become slow.
[[nodiscard]] inline int64_t rows_in_cache(const Stream& stream, int64_t row_bytes, int64_t fewest) {
  constexpr int64_t kCacheOfThread = int64_t{1} << 20;
  if (stream.on_cuda()) return std::numeric_limits<int64_t>::max();
  const int64_t rows = stream.threads() * kCacheOfThread / std::max<int64_t>(row_bytes, 1);
  return rows >= fewest ? rows : std::numeric_limits<int64_t>::max();
}

}  // namespace pesc
