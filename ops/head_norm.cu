// RMSNorm of each head on a GPU. T tokens, N heads, D head_dim. With r = rstd, z = x r, for each head
//   forward    y = z w
//   backward   dx = r (g - z mean(g z)),  g = dy w;   dw += sum over tokens and heads of dy z
// Activations have one element type; the weight, rstd and dw are F32. One launch goes over all rows, which
// are the heads of all tokens: row t N + h is head h of token t. As many lanes of a warp take a row as it has
// packs (a power of two, at most the warp), so that a warp takes several rows of a small head. A lane sums in
// float32, the lanes of a row in double.
#include "ops/core/column_sums.cuh"
#include "ops/cuda_ops.h"
#include "ops/head_norm.h"

namespace pesc::cuda {
namespace {

// The heads of a matrix [T, N D] as rows of D elements.
template <class T>
struct Heads {
  T* data;
  int64_t ld;
  int heads, dim;
  __device__ __forceinline__ T* row(int64_t token, int head) const {
    return data + token * ld + static_cast<int64_t>(head) * dim;
  }
};

// The sum over the lanes that share a row: `lanes` neighbours, a power of two. All lanes of the warp call it.
__device__ __forceinline__ double row_sum(double v, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffU, v, offset);
  return v;
}

// This lane's place: which row of each round, and which of the row's lanes.
struct Lane {
  int64_t first, step;  // rows
  int in_row;
  __device__ __forceinline__ explicit Lane(int lanes) {
    const int64_t rows_of_block = blockDim.x / static_cast<unsigned>(lanes);
    first = blockIdx.x * rows_of_block + threadIdx.x / static_cast<unsigned>(lanes);
    step = gridDim.x * rows_of_block;
    in_row = static_cast<int>(threadIdx.x) % lanes;
  }
};

// REQUIRES: blockDim.x is a multiple of the warp, lanes a power of two up to the warp, N divides the head.
template <int N, class T>
__global__ void forward_kernel(Heads<const T> x, int64_t tokens, const float* w, float eps, Heads<T> y,
                               View<float> rstd, int lanes) {
  const Lane lane(lanes);
  const int packs = x.dim / N;
  const int64_t rows = tokens * x.heads;
  // All lanes of a warp make the same rounds, for the sake of the shuffles; a lane may be left without a row.
  const int64_t rounds = (rows + lane.step - 1) / lane.step;
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t row = lane.first + round * lane.step;
    const int64_t t = row / x.heads;
    const int head = static_cast<int>(row - t * x.heads);
    float square = 0;
    for (int i = lane.in_row; row < rows && i < packs; i += lanes) {
      float a[N];
      load_floats<N>(x.row(t, head) + i * N, a);
#pragma unroll
      for (int j = 0; j < N; ++j) square += a[j] * a[j];
    }
    const double mean = row_sum(static_cast<double>(square), lanes) / static_cast<double>(x.dim);
    const float r = static_cast<float>(1.0 / sqrt(mean + static_cast<double>(eps)));
    if (row >= rows) continue;
    if (lane.in_row == 0) rstd.row(t)[head] = r;
    // A lane writes what only it reads: y may be x.
    for (int i = lane.in_row; i < packs; i += lanes) {
      float a[N], weight[N];
      load_floats<N>(x.row(t, head) + i * N, a);
      load_floats<N>(w + i * N, weight);
#pragma unroll
      for (int j = 0; j < N; ++j) a[j] = a[j] * r * weight[j];
      store_floats<N>(y.row(t, head) + i * N, a);
    }
  }
}

// REQUIRES: as above.
template <int N, class T>
__global__ void backward_kernel(Heads<const T> dy, Heads<const T> x, int64_t tokens, const float* w,
                                View<const float> rstd, Heads<T> dx, int lanes) {
  const Lane lane(lanes);
  const int packs = x.dim / N;
  const int64_t rows = tokens * x.heads;
  const int64_t rounds = (rows + lane.step - 1) / lane.step;
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t row = lane.first + round * lane.step;
    const int64_t t = row / x.heads;
    const int head = static_cast<int>(row - t * x.heads);
    float product = 0;
    for (int i = lane.in_row; row < rows && i < packs; i += lanes) {
      float g[N], a[N], weight[N];
      load_floats<N>(dy.row(t, head) + i * N, g);
      load_floats<N>(x.row(t, head) + i * N, a);
      load_floats<N>(w + i * N, weight);
#pragma unroll
      for (int j = 0; j < N; ++j) product += g[j] * weight[j] * a[j];
    }
    const double sum = row_sum(static_cast<double>(product), lanes);
    if (row >= rows) continue;
    const float r = rstd.row(t)[head];
    const float c = static_cast<float>(sum / static_cast<double>(x.dim) * r * r * r);
    for (int i = lane.in_row; i < packs; i += lanes) {
      float g[N], a[N], weight[N];
      load_floats<N>(dy.row(t, head) + i * N, g);
      load_floats<N>(x.row(t, head) + i * N, a);
      load_floats<N>(w + i * N, weight);
#pragma unroll
      for (int j = 0; j < N; ++j) g[j] = r * g[j] * weight[j] - c * a[j];
      store_floats<N>(dx.row(t, head) + i * N, g);
    }
  }
}

// partial[block, c] = the sum of dy x rstd over the block's run of rows. A block's threads take its rows in
// turn, and their sums are added in the order of the threads. REQUIRES: blockDim.x is kThreads.
template <int N, class T>
__global__ void weight_runs(Heads<const T> dy, Heads<const T> x, int64_t tokens, View<const float> rstd,
                            int64_t run, float* partial) {
  __shared__ float sums[kThreads * N];
  const int packs = x.dim / N;
  const int columns = packs < kThreads ? packs : kThreads;  // threads side by side on a row
  const int rows_at_once = kThreads / columns;
  const int column = static_cast<int>(threadIdx.x) % columns;
  const int turn = static_cast<int>(threadIdx.x) / columns;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * run;
  const int64_t rows = tokens * x.heads;
  const int64_t end = begin + run < rows ? begin + run : rows;
  for (int first = 0; first < packs; first += columns) {
    const int pack = first + column;
    float total[N] = {};
    for (int64_t row = begin + turn; turn < rows_at_once && pack < packs && row < end; row += rows_at_once) {
      const int64_t t = row / x.heads;
      const int head = static_cast<int>(row - t * x.heads);
      float g[N], a[N];
      load_floats<N>(dy.row(t, head) + pack * N, g);
      load_floats<N>(x.row(t, head) + pack * N, a);
      const float r = rstd.row(t)[head];
#pragma unroll
      for (int j = 0; j < N; ++j) total[j] += g[j] * (a[j] * r);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) sums[threadIdx.x * N + j] = total[j];
    __syncthreads();
    if (turn == 0 && pack < packs) {
      for (int other = 1; other < rows_at_once; ++other) {
#pragma unroll
        for (int j = 0; j < N; ++j) total[j] += sums[(other * columns + column) * N + j];
      }
#pragma unroll
      for (int j = 0; j < N; ++j) partial[static_cast<int64_t>(blockIdx.x) * x.dim + pack * N + j] = total[j];
    }
    __syncthreads();
  }
}

template <int N, class T>
void add_weight_gradient(Stream& stream, const Heads<const T>& dy, const Heads<const T>& x, int64_t tokens,
                         const Tensor& rstd, const Tensor& dweight) {
  constexpr int64_t kMostRuns = 256;
  const int64_t rows = tokens * x.heads;
  const int64_t run = std::max(kSumRows, (rows + kMostRuns - 1) / kMostRuns);
  const int64_t runs = (rows + run - 1) / run;
  float* partial = partials<float>(stream, runs * x.dim);
  weight_runs<N, T><<<static_cast<unsigned>(runs), kThreads, 0, stream_of(stream)>>>(
      dy, x, tokens, view<const float>(rstd), run, partial);
  PESC_LAUNCHED("head_norm_weight_runs");
  add_column_runs<<<blocks_for(x.dim), kThreads, 0, stream_of(stream)>>>(partial, runs, x.dim, dweight.f32());
  PESC_LAUNCHED("head_norm_weight_sums");
}

void check(const Tensor& x, const Tensor& weight, const Tensor& rstd) {
  PESC_CHECK(weight.dtype == DType::kF32 && weight.rows == 1 && weight.cols > 0 &&
                 x.cols == rstd.cols * weight.cols && x.cols < (int64_t{1} << 30),
             "x of ", x.cols, " columns for ", rstd.cols, " heads of ", weight.cols, " ",
             dtype_name(weight.dtype));
  PESC_CHECK(rstd.dtype == DType::kF32 && rstd.rows == x.rows, "rstd of ", rstd.rows, " ",
             dtype_name(rstd.dtype), " for ", x.rows, " tokens");
}
void check_like(const Tensor& y, const Tensor& x, const char* name) {
  PESC_CHECK(y.rows == x.rows && y.cols == x.cols && y.dtype == x.dtype, name, " ", y.rows, "x", y.cols, " ",
             dtype_name(y.dtype), " for x ", x.rows, "x", x.cols, " ", dtype_name(x.dtype));
}

template <class T>
Heads<T> heads_of(const Tensor& x, int64_t dim) {
  return {pointer<T>(x), x.ld, static_cast<int>(x.cols / dim), static_cast<int>(dim)};
}

// One head of each row: where packs divide it, its address and the row stride, they divide all of them.
Tensor first_head(const Tensor& x, int64_t dim) {
  return {x.data, x.dtype, x.rows, dim, x.ld};
}

// Lanes of a row, and blocks for all rows; more rows than these take go in further rounds.
struct Grid {
  int lanes = 1;
  unsigned blocks = 1;
  Grid(int64_t rows, int64_t packs) {
    while (lanes < kWarp && lanes < packs) lanes *= 2;
    const int64_t rows_of_block = kThreads / lanes;
    blocks = static_cast<unsigned>(
        std::clamp<int64_t>((rows + rows_of_block - 1) / rows_of_block, 1, int64_t{1} << 14));
  }
};

}  // namespace

void head_norm_forward(Stream& stream, const HeadNormForward& args) {
  check(args.x, args.weight, args.rstd);
  check_like(args.y, args.x, "y");
  if (args.x.size() == 0) return;
  const int64_t dim = args.weight.cols;
  with_element(args.x.dtype, [&](auto t) {
    using T = decltype(t);
    with_pack<T>({first_head(args.x, dim), args.weight, first_head(args.y, dim)}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const Grid g(args.x.rows * args.rstd.cols, dim / kWidth);
      forward_kernel<kWidth, T><<<g.blocks, kThreads, 0, stream_of(stream)>>>(
          heads_of<const T>(args.x, dim), args.x.rows, pointer<const float>(args.weight), args.eps,
          heads_of<T>(args.y, dim), view<float>(args.rstd), g.lanes);
      PESC_LAUNCHED("head_norm_forward");
    });
  });
}

void head_norm_backward(Stream& stream, const HeadNormBackward& args) {
  check(args.x, args.weight, args.rstd);
  check_like(args.dy, args.x, "dy");
  check_like(args.dx, args.x, "dx");
  const int64_t dim = args.weight.cols;
  const bool trained = args.dweight.present();
  PESC_CHECK(
      !trained || (args.dweight.dtype == DType::kF32 && args.dweight.rows == 1 && args.dweight.cols == dim),
      "dweight of ", args.dweight.cols, " ", dtype_name(args.dweight.dtype), " for heads of ", dim);
  if (args.x.size() == 0) return;
  with_element(args.x.dtype, [&](auto t) {
    using T = decltype(t);
    with_pack<T>({first_head(args.dy, dim), first_head(args.x, dim), args.weight, first_head(args.dx, dim)},
                 [&](auto width) {
                   constexpr int kWidth = decltype(width)::value;
                   const Heads<const T> dy = heads_of<const T>(args.dy, dim);
                   const Heads<const T> x = heads_of<const T>(args.x, dim);
                   // Before dx, which may take the place of dy.
                   if (trained)
                     add_weight_gradient<kWidth, T>(stream, dy, x, args.x.rows, args.rstd, args.dweight);
                   const Grid g(args.x.rows * args.rstd.cols, dim / kWidth);
                   backward_kernel<kWidth, T><<<g.blocks, kThreads, 0, stream_of(stream)>>>(
                       dy, x, args.x.rows, pointer<const float>(args.weight), view<const float>(args.rstd),
                       heads_of<T>(args.dx, dim), g.lanes);
                   PESC_LAUNCHED("head_norm_backward");
                 });
  });
}

}  // namespace pesc::cuda
