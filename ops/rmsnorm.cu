// RMSNorm on a GPU. T tokens, H hidden. With r = rstd, z = x r (the normalised row):
//   forward    y = z w
//   backward   dx += r (g - z mean(g z)),  g = dy w;   dw += sum over tokens of dy z
// Activations (x, residual, y and their gradients) have one element type, the weight another; rstd and dw are
// F32. A thread sums its part of a row in float32, the block its threads in double.
//
// A block takes one row (the backward's are in ops/rmsnorm_backward.cuh), and a thread keeps what it has read
// of it in registers: kHeld packs, threads apart. Rows that are longer than that are read twice.
#include "ops/core/column_sums.cuh"
#include "ops/cuda_ops.h"
#include "ops/dropout_mask.cuh"
#include "ops/fp8_rows.cuh"
#include "ops/rmsnorm.h"
#include "ops/rmsnorm_backward.cuh"

namespace pesc::cuda {
namespace {

constexpr unsigned kForward = 256;  // threads of a block

// (x r) w: rmsnorm_apply must repeat it bitwise.
template <int N, class T, class W>
__device__ __forceinline__ void normalise(const Pack<T, N>& x, const W* w, float r, float (&y)[N]) {
  float b[N];
  load_floats<N>(w, b);
#pragma unroll
  for (int i = 0; i < N; ++i) y[i] = as_float(x.v[i]) * r * b[i];
}

// Writes y and its dropped copy, of which either may be absent.
template <int N, class T>
__device__ __forceinline__ void store_both(float (&y)[N], const View<T>& out, const RowMask& mask,
                                           const View<T>& dropped, int64_t t, int64_t column) {
  if (out.data != nullptr) store_floats<N>(out.row(t) + column, y);
  if (dropped.data == nullptr) return;
  mask.apply(column, y);
  store_floats<N>(dropped.row(t) + column, y);
}

// The pack of what is normalised: x, or x + residual, which is written to x_out. x_out may be x.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> residual_pack(const View<const T>& x, const View<const T>& residual,
                                                    const View<T>& x_out, int64_t t, int64_t column) {
  Pack<T, N> a = load_pack<N>(x.row(t) + column);
  if (residual.data == nullptr) return a;
  const Pack<T, N> b = load_pack<N>(residual.row(t) + column);
#pragma unroll
  for (int j = 0; j < N; ++j) a.v[j] = from_float<T>(as_float(a.v[j]) + as_float(b.v[j]));
  store_pack<N>(x_out.row(t) + column, a);
  return a;
}

// The codes of y, in a kernel with them.
struct CodesOf {
  View<uint8_t> codes;
  float* scales;
};

template <int N, int kHeld, bool kCodes, class T, class W>
__global__ void forward_kernel(View<const T> x, View<const T> residual, View<T> x_out, const W* w, float eps,
                               View<T> y, float* rstd, Mask mask, View<T> dropped, CodesOf to) {
  const int64_t t = blockIdx.x;
  const int packs = static_cast<int>(x.cols / N);
  const int threads = static_cast<int>(blockDim.x);
  const int first = static_cast<int>(threadIdx.x);
  Pack<T, N> held[kHeld];
  float total = 0;
  const auto add_squares = [&](const Pack<T, N>& a) {
#pragma unroll
    for (int j = 0; j < N; ++j) total += as_float(a.v[j]) * as_float(a.v[j]);
  };
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int i = first + k * threads;
    if (i >= packs) break;
    held[k] = residual_pack<N>(x, residual, x_out, t, int64_t{i} * N);
    add_squares(held[k]);
  }
  for (int i = first + kHeld * threads; i < packs; i += threads)
    add_squares(residual_pack<N>(x, residual, x_out, t, int64_t{i} * N));
  const double mean = block_sum(static_cast<double>(total)) / static_cast<double>(x.cols);
  const float r = static_cast<float>(1.0 / sqrt(mean + static_cast<double>(eps)));
  if (first == 0) rstd[t] = r;
  const RowMask row_mask(mask, t);
  // y of a pack, rounded.
  const auto made = [&](const Pack<T, N>& a, int i, float(&out)[N]) {
    normalise<N, T, W>(a, w + int64_t{i} * N, r, out);
    Pack<T, N> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) pack.v[j] = from_float<T>(out[j]);
    return pack;
  };
  const auto floats = [](const Pack<T, N>& pack, float(&out)[N]) {
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] = as_float(pack.v[j]);
  };
  uint32_t largest = 0;
  const auto write = [&](const Pack<T, N>& a, int i) {
    float out[N];
    const Pack<T, N> pack = made(a, i, out);
    if constexpr (kCodes) {
      float rounded[N];
      floats(pack, rounded);
      largest = largest_bits<N>(rounded, largest);
    }
    store_both<N, T>(out, y, row_mask, dropped, t, int64_t{i} * N);
    return pack;
  };
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int i = first + k * threads;
    if (i >= packs) break;
    held[k] = write(held[k], i);
  }
  // What a thread reads now, it wrote itself.
  const auto again = [&](int i) {
    return load_pack<N>((residual.data != nullptr ? x_out.row(t) : x.row(t)) + int64_t{i} * N);
  };
  for (int i = first + kHeld * threads; i < packs; i += threads) (void)write(again(i), i);
  if constexpr (kCodes) {
    __shared__ uint32_t partial[kWarp];
    const RowScale scale(block_largest(largest, partial));
    if (first == 0) to.scales[t] = scale.scale;
    const auto write_codes = [&](const Pack<T, N>& pack, int i) {
      float rounded[N];
      floats(pack, rounded);
      store_pack<N>(to.codes.row(t) + int64_t{i} * N, scale.codes<N>(rounded));
    };
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int i = first + k * threads;
      if (i < packs) write_codes(held[k], i);
    }
    for (int i = first + kHeld * threads; i < packs; i += threads) {
      float out[N];
      write_codes(made(again(i), i, out), i);
    }
    for (int64_t i = x.cols + first; i < to.codes.cols; i += threads) to.codes.row(t)[i] = 0;
  }
}

template <int N, class T, class W>
__global__ void apply_kernel(View<const T> x, const W* w, const float* rstd, View<T> y, Mask mask,
                             View<T> dropped) {
  PESC_FOR_ROWS(t, x.rows) {
    const RowMask row_mask(mask, t);
    const float r = rstd[t];
#pragma unroll 2
    PESC_FOR_COLUMNS(i, x.cols / N) {
      float out[N];
      normalise<N, T, W>(load_pack<N>(x.row(t) + i * N), w + i * N, r, out);
      store_both<N, T>(out, y, row_mask, dropped, t, i * N);
    }
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

void check_like(const Tensor& y, const Tensor& x, const char* name) {
  PESC_CHECK(y.rows == x.rows && y.cols == x.cols && y.dtype == x.dtype, name, " ", y.rows, "x", y.cols, " ",
             dtype_name(y.dtype), " for x ", x.rows, "x", x.cols, " ", dtype_name(x.dtype));
}
void check(const Tensor& x, const Tensor& weight, const Tensor& rstd) {
  PESC_CHECK(weight.rows == 1 && weight.cols == x.cols, "weight of ", weight.cols, " for ", x.cols,
             " columns");
  PESC_CHECK(x.cols / kPack<float> < (int64_t{1} << 30), x.cols, " columns");
  PESC_CHECK(rstd.dtype == DType::kF32 && rstd.rows == 1 && rstd.cols == x.rows, "rstd of ", rstd.cols, " ",
             dtype_name(rstd.dtype), " for ", x.rows, " tokens");
}
void check_dropped(const Dropout& mask, const Tensor& t, const Tensor& x) {
  if (!t.present()) return;
  check_like(t, x, "dropped");
  check_mask(mask, x.rows);
}

// Calls f(T{}, W{}) with the element types of the activations and of the weight.
template <class F>
void with_types(const Tensor& x, const Tensor& weight, F f) {
  with_element(x.dtype, [&](auto t) { with_element(weight.dtype, [&](auto w) { f(t, w); }); });
}

// Calls f(kHeld) with the packs that a thread keeps; 4 where there are more.
template <class F>
void with_held(int64_t packs, unsigned threads, F f) {
  if (packs <= threads) return f(std::integral_constant<int, 1>{});
  if (packs <= 2 * static_cast<int64_t>(threads)) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 4>{});
}

}  // namespace

void rmsnorm_forward(Stream& stream, const RmsNormForward& args) {
  check(args.x, args.weight, args.rstd);
  const Fp8Rows& codes = args.codes;
  PESC_CHECK(args.x.rows == 0 || args.y.present() || (args.dropped.y.present() && codes.present()), "no y");
  PESC_CHECK(codes.column_scales.cols == 0, "codes of a norm with column scales");
  if (args.y.present()) check_like(args.y, args.x, "y");
  check_codes(codes, args.x.rows, args.x.cols);
  const Tensor& residual = args.residual;
  if (residual.present()) {
    check_like(residual, args.x, "residual");
    check_like(args.x_out, args.x, "x_out");
  }
  const Tensor x_out = residual.present() ? args.x_out : Tensor{};
  const Tensor& dropped = args.dropped.y;
  check_dropped(args.dropped.mask, dropped, args.x);
  if (args.x.rows == 0) return;
  with_types(args.x, args.weight, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    with_masked_pack<T>(
        args.dropped.mask, {args.x, residual, x_out, args.weight, args.y, dropped, codes.codes},
        [&](auto width) {
          constexpr int kWidth = decltype(width)::value;
          const int64_t packs = args.x.cols / kWidth;
          const unsigned threads = threads_for(packs, kForward);
          with_held(packs, threads, [&](auto held) {
            constexpr int kHeld = decltype(held)::value;
            const auto kernel = codes.present() ? forward_kernel<kWidth, kHeld, true, T, W>
                                                : forward_kernel<kWidth, kHeld, false, T, W>;
            const CodesOf to{view_or_none<uint8_t>(codes.codes),
                             codes.present() ? pointer<float>(codes.scales) : nullptr};
            kernel<<<blocks_of(args.x.rows), threads, 0, stream_of(stream)>>>(
                view<const T>(args.x), view_or_none<const T>(residual), view_or_none<T>(x_out),
                pointer<const W>(args.weight), args.eps, view_or_none<T>(args.y), args.rstd.f32(),
                Mask(args.dropped.mask), view_or_none<T>(dropped), to);
            PESC_LAUNCHED("rmsnorm_forward");
          });
        });
  });
}

void rmsnorm_apply(Stream& stream, const Tensor& x, const Tensor& weight, const Tensor& rstd, const Tensor& y,
                   const DroppedCopy& dropped) {
  check(x, weight, rstd);
  if (y.present()) check_like(y, x, "y");
  check_dropped(dropped.mask, dropped.y, x);
  if (x.size() == 0) return;
  with_types(x, weight, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    with_masked_pack<T>(dropped.mask, {x, weight, y, dropped.y}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const WholeRowGrid g(x.rows, x.cols / kWidth);
      apply_kernel<kWidth, T, W><<<g.grid, g.block, 0, stream_of(stream)>>>(
          view<const T>(x), pointer<const W>(weight), rstd.f32(), view_or_none<T>(y), Mask(dropped.mask),
          view_or_none<T>(dropped.y));
      PESC_LAUNCHED("rmsnorm_apply");
    });
  });
}

void rmsnorm_backward(Stream& stream, const RmsNormBackward& args) {
  check(args.x, args.weight, args.rstd);
  check_like(args.dx, args.x, "dx");
  check_like(args.dy, args.x, "dy");
  check_dropped(args.dropped.mask, args.dropped.x, args.x);
  const LowRankTerm& low_rank = args.low_rank;
  const bool trainable = args.dweight.present();
  PESC_CHECK(!low_rank.present() ||
                 (low_rank.left.rows <= args.x.rows && low_rank.left.cols == low_rank.right.rows &&
                  low_rank.right.cols == args.x.cols),
             "a low-rank term of ", low_rank.left.rows, "x", low_rank.left.cols, " and ", low_rank.right.rows,
             "x", low_rank.right.cols, " for x ", args.x.rows, "x", args.x.cols);
  PESC_CHECK(
      !trainable || (args.dweight.dtype == DType::kF32 && args.dweight.rows == 1 &&
                     args.dweight.cols == args.x.cols && !args.dropped.x.present() && !low_rank.present()),
      "dweight of ", args.dweight.cols, " ", dtype_name(args.dweight.dtype), " for ", args.x.cols,
      " columns, or a trainable norm with a dropped or a low-rank term");
  if (args.x.rows == 0) return;
  const Tensor right = low_rank.present() ? low_rank.right : Tensor{};
  with_types(args.x, args.weight, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    with_masked_pack<T>(
        args.dropped.mask, {args.x, args.dy, args.dx, args.weight, args.dropped.x, right}, [&](auto width) {
          constexpr int kWidth = decltype(width)::value;
          const Gradient<T> from{view<const T>(args.dy), Mask(args.dropped.mask),
                                 view_or_none<const T>(args.dropped.x),
                                 view_or_none<const float>(low_rank.left), view_or_none<const float>(right)};
          const int64_t packs = args.x.cols / kWidth;
          const unsigned threads = threads_for(packs, kMost);
          if (kWidth == kPack<T> && ring_packs(packs, right.rows) > 0) {
            if constexpr (kWidth == kPack<T>)
              launch_ring_backward<kWidth, T, W>(stream, from, view<const T>(args.x),
                                                 pointer<const W>(args.weight), args.rstd.f32(),
                                                 view<T>(args.dx));
          } else if (packs > 2 * static_cast<int64_t>(kMost)) {
            long_backward_kernel<kWidth, T, W><<<blocks_of(args.x.rows), threads, 0, stream_of(stream)>>>(
                from, view<const T>(args.x), pointer<const W>(args.weight), args.rstd.f32(),
                view<T>(args.dx));
            PESC_LAUNCHED("rmsnorm_long_backward");
          } else {
            const auto launch = [&](auto held) {
              backward_kernel<kWidth, decltype(held)::value, T, W>
                  <<<blocks_of((args.x.rows + kRows - 1) / kRows), threads, 0, stream_of(stream)>>>(
                      from, view<const T>(args.x), pointer<const W>(args.weight), args.rstd.f32(),
                      view<T>(args.dx));
              PESC_LAUNCHED("rmsnorm_backward");
            };
            if (packs <= threads) {
              launch(std::integral_constant<int, 1>{});
            } else {
              launch(std::integral_constant<int, 2>{});
            }
          }
          if (!trainable) return;
          const WeightTerm<kWidth, T> term{view<const T>(args.dy), view<const T>(args.x), args.rstd.f32()};
          add_column_sums<kWidth>(stream, term, args.x.rows, args.x.cols, args.dweight.f32());
        });
  });
}

}  // namespace pesc::cuda
