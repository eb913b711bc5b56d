// Sums over the rows of [rows, cols] for every column, in float32 and in a fixed order: each block sums a run
// of rows, and the runs are then added in order. The order depends on the shape only.
#pragma once

#include <algorithm>

#include "ops/core/vectors.cuh"

namespace pesc::cuda {

inline constexpr int64_t kSumRows = 64;  // the least number of rows in a run
inline constexpr int kSumThreads = 128;

// partial[run, c .. c + N) = sum over the run's rows r of term(r, c)
template <int N, class Term>
__global__ void column_runs(Term term, int64_t rows, int64_t cols, int64_t run, float* partial) {
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (c >= cols) return;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * run;
  const int64_t end = begin + run < rows ? begin + run : rows;
  float total[N] = {};
#pragma unroll 4
  for (int64_t r = begin; r < end; ++r) {
    float values[N];
    term(r, c, values);
#pragma unroll
    for (int i = 0; i < N; ++i) total[i] += values[i];
  }
  store_floats<N>(partial + static_cast<int64_t>(blockIdx.y) * cols + c, total);
}

static __global__ void add_column_runs(const float* partial, int64_t runs, int64_t cols, float* out) {
  for (int64_t c = first_index(); c < cols; c += index_step()) {
    float total = 0;
    for (int64_t run = 0; run < runs; ++run) total += partial[run * cols + c];
    out[c] += total;
  }
}

// out [cols] F32 += the column sums of `Term`, a struct with
//   __device__ void operator()(int64_t row, int64_t column, float (&values)[N]) const
// that gives the values of N adjacent columns. REQUIRES: N divides `cols`.
template <int N, class Term>
void add_column_sums(Stream& stream, const Term& term, int64_t rows, int64_t cols, float* out) {
  if (rows == 0 || cols == 0) return;
  const int64_t most = std::min<int64_t>(256, CudaStream::kWorkspaceBytes / int64_t{sizeof(float)} / cols);
  PESC_CHECK(most >= 1, "sums of ", cols, " columns");
  const int64_t run = std::max(kSumRows, (rows + most - 1) / most);
  const int64_t runs = (rows + run - 1) / run;
  float* partial = partials<float>(stream, runs * cols);
  const dim3 grid(static_cast<unsigned>((cols / N + kSumThreads - 1) / kSumThreads),
                  static_cast<unsigned>(runs));
  column_runs<N><<<grid, kSumThreads, 0, stream_of(stream)>>>(term, rows, cols, run, partial);
  PESC_LAUNCHED("column_runs");
  add_column_runs<<<blocks_for(cols), kThreads, 0, stream_of(stream)>>>(partial, runs, cols, out);
  PESC_LAUNCHED("add_column_runs");
}

}  // namespace pesc::cuda
