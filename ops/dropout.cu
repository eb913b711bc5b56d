// Dropout on a GPU: the masks of the CPU, bit for bit. T tokens, C columns; the tensors of a call have one
// element type, any row strides.
#include "ops/cuda_ops.h"
#include "ops/dropout_mask.cuh"

namespace pesc::cuda {
namespace {

// y = mask(x), or base + mask(x) where base has data. y may alias x or base: a thread writes only elements
// that no other thread reads.
template <int N, class T>
__global__ void mask_kernel(Mask mask, View<const T> x, View<const T> base, View<T> y) {
  PESC_FOR_ROWS(r, x.rows) {
    const RowMask row(mask, r);
#pragma unroll 2
    PESC_FOR_COLUMNS(i, x.cols / N) {
      float values[N];
      load_floats<N>(x.row(r) + i * N, values);
      row.apply(i * N, values);
      if (base.data != nullptr) {
        float plus[N];
        load_floats<N>(base.row(r) + i * N, plus);
#pragma unroll
        for (int j = 0; j < N; ++j) values[j] += plus[j];
      }
      store_floats<N>(y.row(r) + i * N, values);
    }
  }
}

// sum = x + f, dropped = mask(f); dropped may alias f.
template <int N, class T>
__global__ void residual_kernel(Mask mask, View<const T> x, View<const T> f, View<T> sum, View<T> dropped) {
  PESC_FOR_ROWS(r, x.rows) {
    const RowMask row(mask, r);
#pragma unroll 2
    PESC_FOR_COLUMNS(i, x.cols / N) {
      float a[N], b[N];
      load_floats<N>(x.row(r) + i * N, a);
      load_floats<N>(f.row(r) + i * N, b);
#pragma unroll
      for (int j = 0; j < N; ++j) a[j] += b[j];
      store_floats<N>(sum.row(r) + i * N, a);
      row.apply(i * N, b);
      store_floats<N>(dropped.row(r) + i * N, b);
    }
  }
}

void check(const Dropout& mask, const Tensor& x, const Tensor& y) {
  PESC_CHECK(x.rows == y.rows && x.cols == y.cols && x.dtype == y.dtype, x.rows, "x", x.cols, " ",
             dtype_name(x.dtype), " against ", y.rows, "x", y.cols, " ", dtype_name(y.dtype));
  check_mask(mask, x.rows);
}

void mask_tokens(Stream& stream, const Dropout& d, const Tensor& x, const Tensor& base, const Tensor& y) {
  if (x.size() == 0) return;
  with_element(x.dtype, [&](auto element) {
    using T = decltype(element);
    with_masked_pack<T>(d, {x, base, y}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const WholeRowGrid g(x.rows, x.cols / kWidth);
      mask_kernel<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(
          Mask(d), view<const T>(x), view_or_none<const T>(base), view<T>(y));
      PESC_LAUNCHED("dropout");
    });
  });
}

}  // namespace

void dropout(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& y) {
  check(mask, x, y);
  if (mask.rate == 0) return cuda::copy(stream, x, y);
  mask_tokens(stream, mask, x, {}, y);
}

void dropout_sum(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& base, const Tensor& y) {
  check(mask, x, y);
  check(mask, base, y);
  mask_tokens(stream, mask, x, base, y);
}

void dropout_residual(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& f,
                      const Tensor& sum, const Tensor& dropped) {
  check(mask, x, f);
  check(mask, x, sum);
  check(mask, x, dropped);
  if (x.size() == 0) return;
  with_element(x.dtype, [&](auto element) {
    using T = decltype(element);
    with_masked_pack<T>(mask, {x, f, sum, dropped}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const WholeRowGrid g(x.rows, x.cols / kWidth);
      residual_kernel<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(
          Mask(mask), view<const T>(x), view<const T>(f), view<T>(sum), view<T>(dropped));
      PESC_LAUNCHED("dropout_residual");
    });
  });
}

}  // namespace pesc::cuda
