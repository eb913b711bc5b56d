// RMSNorm on a GPU: one block per row. T tokens, H hidden. With r = rstd, z = x r (the normalised row):
//   forward    y = z w
//   backward   dx += r (g - z mean(g z)),  g = dy w;   dw += sum over tokens of dy z
// Activations (x, delta, y and their gradients) have one element type, the weight another; rstd and dw are
// F32. A thread sums its part of a row in float32, the block its threads in double.
#include "ops/core/column_sums.cuh"
#include "ops/cuda_ops.h"
#include "ops/rmsnorm.h"

namespace pesc::cuda {
namespace {

// One block per row: as many threads as a row has packs, in whole warps.
unsigned threads_for(int64_t packs) {
  return static_cast<unsigned>(std::clamp<int64_t>((packs + kWarp - 1) / kWarp * kWarp, kWarp, kThreads));
}
unsigned blocks_of(int64_t rows) {
  return static_cast<unsigned>(std::min<int64_t>(rows, int64_t{1} << 30));
}

// y = (x r) w, the one place where y is made: rmsnorm_apply must repeat it bitwise.
template <int N, class T, class W>
__device__ __forceinline__ void apply_pack(const T* x, const W* w, float r, T* y) {
  float a[N], b[N];
  load_floats<N>(x, a);
  load_floats<N>(w, b);
#pragma unroll
  for (int i = 0; i < N; ++i) a[i] = a[i] * r * b[i];
  store_floats<N>(y, a);
}

// `delta` with data null: x is normalised as it is. x_out may be x.
template <int N, class T, class W>
__global__ void forward_kernel(View<const T> x, View<const T> delta, View<T> x_out, const W* w, float eps,
                               View<T> y, float* rstd) {
  const int64_t t = blockIdx.x;
  const int64_t packs = x.cols / N;
  const T* row = x.row(t);
  float total = 0;
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    float a[N];
    load_floats<N>(row + i * N, a);
    if (delta.data != nullptr) {
      float b[N];
      load_floats<N>(delta.row(t) + i * N, b);
#pragma unroll
      for (int j = 0; j < N; ++j) a[j] = as_float(from_float<T>(a[j] + b[j]));
      store_floats<N>(x_out.row(t) + i * N, a);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) total += a[j] * a[j];
  }
  const double mean = block_sum(static_cast<double>(total)) / static_cast<double>(x.cols);
  const float r = static_cast<float>(1.0 / sqrt(mean + static_cast<double>(eps)));
  if (threadIdx.x == 0) rstd[t] = r;
  // What a thread reads now, it wrote itself.
  const T* normed = delta.data != nullptr ? x_out.row(t) : row;
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x)
    apply_pack<N>(normed + i * N, w + i * N, r, y.row(t) + i * N);
}

template <int N, class T, class W>
__global__ void apply_kernel(View<const T> x, const W* w, const float* rstd, View<T> y) {
  PESC_FOR_ROWS(t, x.rows) {
    PESC_FOR_COLUMNS(i, x.cols / N) {
      apply_pack<N>(x.row(t) + i * N, w + i * N, rstd[t], y.row(t) + i * N);
    }
  }
}

template <int N, class T, class W>
__global__ void backward_kernel(View<const T> dy, View<const T> x, const W* w, const float* rstd,
                                View<T> dx) {
  const int64_t t = blockIdx.x;
  const int64_t packs = x.cols / N;
  float total = 0;
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    float a[N], d[N], b[N];
    load_floats<N>(x.row(t) + i * N, a);
    load_floats<N>(dy.row(t) + i * N, d);
    load_floats<N>(w + i * N, b);
#pragma unroll
    for (int j = 0; j < N; ++j) total += d[j] * b[j] * a[j];
  }
  const float r = rstd[t];
  const double mean = block_sum(static_cast<double>(total)) * r / static_cast<double>(x.cols);
  const float c = static_cast<float>(mean * r * r);
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    float a[N], d[N], b[N], out[N];
    load_floats<N>(x.row(t) + i * N, a);
    load_floats<N>(dy.row(t) + i * N, d);
    load_floats<N>(w + i * N, b);
    load_floats<N>(dx.row(t) + i * N, out);
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] += r * d[j] * b[j] - c * a[j];
    store_floats<N>(dx.row(t) + i * N, out);
  }
}

template <int N, class T>
struct WeightTerm {
  View<const T> dy, x;
  const float* rstd;
  __device__ __forceinline__ void operator()(int64_t t, int64_t c, float (&values)[N]) const {
    float a[N];
    load_floats<N>(x.row(t) + c, a);
    load_floats<N>(dy.row(t) + c, values);
    const float r = rstd[t];
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] *= a[i] * r;
  }
};

void check(const Tensor& x, const Tensor& weight, const Tensor& rstd, const Tensor& y) {
  PESC_CHECK(weight.rows == 1 && weight.cols == x.cols, "weight of ", weight.cols, " for ", x.cols,
             " columns");
  PESC_CHECK(rstd.dtype == DType::kF32 && rstd.rows == 1 && rstd.cols == x.rows, "rstd of ", rstd.cols, " ",
             dtype_name(rstd.dtype), " for ", x.rows, " tokens");
  PESC_CHECK(y.rows == x.rows && y.cols == x.cols && y.dtype == x.dtype, "y ", y.rows, "x", y.cols, " ",
             dtype_name(y.dtype), " for x ", x.rows, "x", x.cols, " ", dtype_name(x.dtype));
}

// Calls f(T{}, W{}) with the element types of the activations and of the weight.
template <class F>
void with_types(const Tensor& x, const Tensor& weight, F f) {
  with_element(x.dtype, [&](auto t) { with_element(weight.dtype, [&](auto w) { f(t, w); }); });
}

}  // namespace

void rmsnorm_forward(Stream& stream, const RmsNormForward& args) {
  check(args.x, args.weight, args.rstd, args.y);
  const bool fused = args.delta.present();
  if (fused) {
    check(args.x, args.weight, args.rstd, args.delta);
    check(args.x, args.weight, args.rstd, args.x_out);
  }
  if (args.x.rows == 0) return;
  const Tensor delta = fused ? args.delta : Tensor{nullptr, args.x.dtype, 0, 0, 0};
  const Tensor x_out = fused ? args.x_out : delta;
  with_types(args.x, args.weight, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    with_pack<T>({args.x, delta, x_out, args.weight, args.y}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      forward_kernel<kWidth, T, W>
          <<<blocks_of(args.x.rows), threads_for(args.x.cols / kWidth), 0, stream_of(stream)>>>(
              view<const T>(args.x), view<const T>(delta), view<T>(x_out), pointer<const W>(args.weight),
              args.eps, view<T>(args.y), args.rstd.f32());
      PESC_LAUNCHED("rmsnorm_forward");
    });
  });
}

void rmsnorm_apply(Stream& stream, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                   const Tensor& y) {
  check(x, weight, rstd, y);
  if (x.size() == 0) return;
  with_types(x, weight, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    with_pack<T>({x, weight, y}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const RowGrid g(x.rows, x.cols / kWidth);
      apply_kernel<kWidth, T, W><<<g.grid, g.block, 0, stream_of(stream)>>>(
          view<const T>(x), pointer<const W>(weight), rstd.f32(), view<T>(y));
      PESC_LAUNCHED("rmsnorm_apply");
    });
  });
}

void rmsnorm_backward(Stream& stream, const RmsNormBackward& args) {
  check(args.x, args.weight, args.rstd, args.dx);
  check(args.x, args.weight, args.rstd, args.dy);
  const bool trained = args.dweight.present();
  PESC_CHECK(!trained || (args.dweight.dtype == DType::kF32 && args.dweight.rows == 1 &&
                          args.dweight.cols == args.x.cols),
             "dweight of ", args.dweight.cols, " ", dtype_name(args.dweight.dtype), " for ", args.x.cols,
             " columns");
  if (args.x.rows == 0) return;
  with_types(args.x, args.weight, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    with_pack<T>({args.x, args.dy, args.dx, args.weight}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      backward_kernel<kWidth, T, W>
          <<<blocks_of(args.x.rows), threads_for(args.x.cols / kWidth), 0, stream_of(stream)>>>(
              view<const T>(args.dy), view<const T>(args.x), pointer<const W>(args.weight), args.rstd.f32(),
              view<T>(args.dx));
      PESC_LAUNCHED("rmsnorm_backward");
      if (!trained) return;
      const WeightTerm<kWidth, T> term{view<const T>(args.dy), view<const T>(args.x), args.rstd.f32()};
      add_column_sums<kWidth>(stream, term, args.x.rows, args.x.cols, args.dweight.f32());
    });
  });
}

}  // namespace pesc::cuda
