// Dropout on a GPU: the same counters as on the CPU, so the same masks, bit for bit. One Philox call makes
// the bits of four columns; packs of four or eight columns start at a multiple of four, or are single
// elements. T tokens, C columns; x and y have one element type, any row strides.
#include <cmath>

#include "ops/core/philox.h"
#include "ops/core/vectors.cuh"
#include "ops/cuda_ops.h"
#include "ops/dropout.h"

namespace pesc::cuda {
namespace {

// What all elements share.
struct Mask {
  const int64_t* samples;
  const int32_t* positions;
  uint32_t threshold;  // kept: word >= threshold
  float scale;
  uint32_t layer_site, key0, key1;
  int64_t column0;
};

enum class Into { kWrite, kAdd };

template <int N, Into into, class T>
__global__ void mask_kernel(Mask mask, View<const T> x, View<T> y) {
  PESC_FOR_ROWS(r, x.rows) {
    const auto sample = static_cast<uint64_t>(mask.samples[r]);
    const auto position = static_cast<uint32_t>(mask.positions[r]);
    const PhiloxKey key = {mask.key0 ^ static_cast<uint32_t>(sample >> 32) * 0x85EBCA6BU, mask.key1};
    PESC_FOR_COLUMNS(i, x.cols / N) {
      const int64_t column = mask.column0 + i * N;
      float in[N], out[N] = {};
      load_floats<N>(x.row(r) + i * N, in);
      if constexpr (into == Into::kAdd) load_floats<N>(y.row(r) + i * N, out);
#pragma unroll
      for (int j = 0; j < N; j += 4) {
        const PhiloxCounter words = philox({static_cast<uint32_t>((column + j) / 4), position,
                                            static_cast<uint32_t>(sample), mask.layer_site},
                                           key);
        if constexpr (N == 1) {
          const uint32_t word = column % 4 < 2 ? (column % 4 == 0 ? words[0] : words[1])
                                               : (column % 4 == 2 ? words[2] : words[3]);
          const float kept = word >= mask.threshold ? in[0] * mask.scale : 0.0F;
          out[0] = into == Into::kAdd ? out[0] + kept : kept;
        } else {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const float kept =
                words[static_cast<size_t>(k)] >= mask.threshold ? in[j + k] * mask.scale : 0.0F;
            out[j + k] = into == Into::kAdd ? out[j + k] + kept : kept;
          }
        }
      }
      store_floats<N>(y.row(r) + i * N, out);
    }
  }
}

void check(const Dropout& mask, const Tensor& x, const Tensor& y) {
  PESC_CHECK(x.rows == y.rows && x.cols == y.cols && x.dtype == y.dtype, x.rows, "x", x.cols, " ",
             dtype_name(x.dtype), " against ", y.rows, "x", y.cols, " ", dtype_name(y.dtype));
  PESC_CHECK(mask.rate >= 0 && mask.rate < 1, "dropout rate ", mask.rate, " is not in [0, 1)");
  if (mask.rate == 0) return;
  PESC_CHECK(mask.samples.size() == x.rows && mask.positions.size() == x.rows, "identities of ",
             mask.samples.size(), " and ", mask.positions.size(), " tokens for ", x.rows);
  PESC_CHECK(mask.samples.dtype == DType::kI64 && mask.positions.dtype == DType::kI32, "identities ",
             dtype_name(mask.samples.dtype), " and ", dtype_name(mask.positions.dtype));
  PESC_CHECK(mask.layer < (1U << 24) && mask.column0 >= 0, "layer ", mask.layer, ", column ", mask.column0);
}

template <Into into>
void mask_tokens(Stream& stream, const Dropout& d, const Tensor& x, const Tensor& y) {
  if (x.size() == 0) return;
  const Mask mask = {
      .samples = d.samples.i64(),
      .positions = d.positions.i32(),
      .threshold = static_cast<uint32_t>(std::llround(static_cast<double>(d.rate) * 4294967296.0)),
      .scale = 1.0F / (1.0F - d.rate),
      .layer_site = d.layer << 8 | static_cast<uint32_t>(d.site),
      .key0 = static_cast<uint32_t>(d.seed),
      .key1 = d.step ^ static_cast<uint32_t>(d.seed >> 32) * 0x9E3779B9U,
      .column0 = d.column0,
  };
  const auto launch = [&](auto element, auto width) {
    using T = decltype(element);
    constexpr int kWidth = decltype(width)::value;
    const RowGrid g(x.rows, x.cols / kWidth);
    mask_kernel<kWidth, into, T>
        <<<g.grid, g.block, 0, stream_of(stream)>>>(mask, view<const T>(x), view<T>(y));
    PESC_LAUNCHED("dropout");
  };
  with_element(x.dtype, [&](auto element) {
    using T = decltype(element);
    if (d.column0 % 4 != 0) return launch(element, std::integral_constant<int, 1>{});
    with_pack<T>({x, y}, [&](auto width) { launch(element, width); });
  });
}

}  // namespace

void dropout(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& y) {
  check(mask, x, y);
  if (mask.rate == 0) {
    cuda::copy(stream, x, y);
  } else {
    mask_tokens<Into::kWrite>(stream, mask, x, y);
  }
}

void dropout_add(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& y) {
  check(mask, x, y);
  if (mask.rate == 0) {
    cuda::add(stream, x, y);
  } else {
    mask_tokens<Into::kAdd>(stream, mask, x, y);
  }
}

}  // namespace pesc::cuda
