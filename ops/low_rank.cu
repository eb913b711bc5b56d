// Adds a low-rank term on a GPU: ops/low_rank.h. The rank is small: a thread sums over it in registers, in
// rising order.
#include "ops/core/vectors.cuh"
#include "ops/cuda_ops.h"
#include "ops/low_rank.h"

namespace pesc::cuda {
namespace {

constexpr int kRowsOfThread = 4;

// out[t, c] += sum_e left[t, e] right[e, c]; a thread takes kRowsOfThread rows of N columns.
template <int N, class T>
__global__ void low_rank_kernel(View<const float> left, View<const float> right, View<T> out) {
  const int64_t groups = (out.rows + kRowsOfThread - 1) / kRowsOfThread;
  PESC_FOR_ROWS(group, groups) {
    const int64_t first = group * kRowsOfThread;
    PESC_FOR_COLUMNS(i, out.cols / N) {
      float sums[kRowsOfThread][N] = {};
      for (int64_t e = 0; e < right.rows; ++e) {
        float w[N];
        load_floats<N>(right.row(e) + i * N, w);
#pragma unroll
        for (int t = 0; t < kRowsOfThread; ++t) {
          const float d = left.row(first + t < out.rows ? first + t : out.rows - 1)[e];
#pragma unroll
          for (int j = 0; j < N; ++j) sums[t][j] += d * w[j];
        }
      }
#pragma unroll
      for (int t = 0; t < kRowsOfThread; ++t) {
        if (first + t >= out.rows) break;
        float sum[N];
        load_floats<N>(out.row(first + t) + i * N, sum);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += sums[t][j];
        store_floats<N>(out.row(first + t) + i * N, sum);
      }
    }
  }
}

}  // namespace

void add_low_rank_term(Stream& stream, const LowRankTerm& term, const Tensor& out) {
  const int64_t rows = term.left.rows;
  PESC_CHECK(out.rows == rows && out.cols == term.right.cols && term.left.cols == term.right.rows, "factors ",
             rows, "x", term.left.cols, " and ", term.right.rows, "x", term.right.cols, " for a gradient of ",
             out.rows, "x", out.cols);
  if (out.size() == 0) return;
  with_element(out.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({out, term.right}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const RowGrid g((rows + kRowsOfThread - 1) / kRowsOfThread, out.cols / kWidth);
      low_rank_kernel<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(
          view<const float>(term.left), view<const float>(term.right), view<T>(out));
      PESC_LAUNCHED("add_low_rank_term");
    });
  });
}

}  // namespace pesc::cuda
