// Loops over the threads of a stream, on OpenMP. A loop is cut into at most stream.threads() equal ranges
// that depend on its length, its grain and the number of threads alone, so that a loop whose pieces write
// apart, or sum inside a piece only, is deterministic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "ops/core/device.h"

namespace pesc {

// Calls f(begin, end) on ranges that cover [0, n), at most one per thread, none shorter than `grain` (>= 1)
// unless n is. Serial on the calling thread where one range is enough. `f` must not throw: checks belong
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

// The grain of a loop over rows of `cols` elements whose work is small per element: a thread is worth waking
// for some 16k of them.
[[nodiscard]] inline int64_t row_grain(int64_t cols) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(cols, 1));
}

// How many rows of `row_bytes`, in all tensors that a chain of operations has in work, the second-level
// caches of its threads hold: a chain goes over so many at a time, and what one operation writes the next
// finds there. All rows where nothing is gained by that: on a GPU, and where `fewest` do not fit, below which
// the chain's operations are slow.
[[nodiscard]] inline int64_t rows_in_cache(const Stream& stream, int64_t row_bytes, int64_t fewest) {
  constexpr int64_t kCacheOfThread = int64_t{1} << 20;
  if (stream.on_cuda()) return std::numeric_limits<int64_t>::max();
  const int64_t rows = stream.threads() * kCacheOfThread / std::max<int64_t>(row_bytes, 1);
  return rows >= fewest ? rows : std::numeric_limits<int64_t>::max();
}

}  // namespace pesc
