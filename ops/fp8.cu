// FP8 rows on a GPU: see ops/fp8.h. A block quantises a row: it reads it twice, for the maximum and for the
// codes; the second read comes from the cache.
#include "ops/core/e4m3.cuh"
#include "ops/cuda_ops.h"
#include "ops/fp8.h"

namespace pesc::cuda {
namespace {

template <int N, class T>
__device__ __forceinline__ void load_scaled(const T* x, const float* factors, int64_t i, float (&out)[N]) {
  load_floats<N>(x + i, out);
  if (factors == nullptr) return;
  float factor[N];
  load_floats<N>(factors + i, factor);
#pragma unroll
  for (int j = 0; j < N; ++j) out[j] *= factor[j];
}

// REQUIRES: N divides the columns of x and of codes; blockDim.x is kThreads.
template <int N, class T>
__global__ void quantize_kernel(View<const T> x, const float* factors, View<uint8_t> codes, float* scales) {
  const int64_t step = static_cast<int64_t>(blockDim.x) * N;
  for (int64_t r = blockIdx.x; r < x.rows; r += gridDim.x) {
    const T* row = x.row(r);
    float largest = 0;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < x.cols; i += step) {
      float v[N];
      load_scaled<N>(row, factors, i, v);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float a = fabsf(v[j]);
        largest = a > largest || a != a ? a : largest;  // a NaN stays: no comparison with it is true
      }
    }
    const float scale = e4m3_scale(fabsf(block_max(largest)));
    if (threadIdx.x == 0) scales[r] = scale;
    const bool finite = scale == scale;
    const float inverse = finite ? inverse_power_of_two(scale) : 0.0F;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < codes.cols; i += step) {
      Pack<uint8_t, N> out{};
      if (i < x.cols && finite) {
        float v[N];
        load_scaled<N>(row, factors, i, v);
#pragma unroll
        for (int j = 0; j < N; ++j) out.v[j] = to_e4m3(v[j] * inverse);
      }
      store_pack<N>(codes.row(r) + i, out);
    }
  }
}

template <int N, class T>
__global__ void dequantize_kernel(View<const uint8_t> codes, const float* scales, View<T> to) {
  PESC_FOR_ROWS(r, to.rows) {
    const float scale = scales[r];
    PESC_FOR_COLUMNS(i, to.cols / N) {
      const Pack<uint8_t, N> in = load_pack<N>(codes.row(r) + i * N);
      float v[N];
#pragma unroll
      for (int j = 0; j < N; ++j) v[j] = from_e4m3(in.v[j]) * scale;
      store_floats<N>(to.row(r) + i * N, v);
    }
  }
}

template <int N, class T>
__global__ void dequantize_blocks_kernel(View<const uint8_t> codes, View<const float> scales, int64_t first,
                                         View<T> to) {
  PESC_FOR_ROWS(r, to.rows) {
    const float* scale = scales.row(r);
    PESC_FOR_COLUMNS(i, to.cols / N) {
      const Pack<uint8_t, N> in = load_pack<N>(codes.row(r) + i * N);
      float v[N];
#pragma unroll
      for (int j = 0; j < N; ++j) v[j] = from_e4m3(in.v[j]) * scale[(first + i * N + j) / kFp8Block];
      store_floats<N>(to.row(r) + i * N, v);
    }
  }
}

constexpr int kTile = 64;

// A block moves tiles of 64 x 64 codes through shared memory; kThreads is 256. N: codes that are read and
// written at once, 4 or 1.
template <int N>
__global__ void transpose_kernel(View<const uint8_t> from, View<uint8_t> to) {
  __shared__ uint8_t tile[kTile][kTile + 4];
  constexpr int kAcross = kTile / N;  // packs of a tile's row
  const int64_t wide = (from.cols + kTile - 1) / kTile;
  const int64_t tiles = wide * ((to.cols + kTile - 1) / kTile);
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t row0 = t / wide * kTile;
    const int64_t col0 = t % wide * kTile;
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kAcross; i += kThreads) {
      const int r = i / kAcross;
      const int c = i % kAcross * N;
      Pack<uint8_t, N> in{};
      if (row0 + r < from.rows && col0 + c < from.cols) in = load_pack<N>(from.row(row0 + r) + col0 + c);
#pragma unroll
      for (int j = 0; j < N; ++j) tile[r][c + j] = in.v[j];
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kAcross; i += kThreads) {
      const int c = i / kAcross;      // a row of `to`
      const int r = i % kAcross * N;  // its columns
      if (col0 + c < to.rows && row0 + r < to.cols) {
        Pack<uint8_t, N> out;
#pragma unroll
        for (int j = 0; j < N; ++j) out.v[j] = tile[r + j][c];
        store_pack<N>(to.row(col0 + c) + row0 + r, out);
      }
    }
    __syncthreads();
  }
}

void check_scales(const Tensor& scales, int64_t rows) {
  PESC_CHECK(scales.rows == rows && scales.cols == 1 && scales.contiguous(), "scales ", scales.rows, "x",
             scales.cols, " of ", rows, " rows");
}

}  // namespace

void fp8_quantize(Stream& stream, const Fp8Quantize& args) {
  const auto& [x, factors, codes, scales] = args;
  PESC_CHECK(codes.rows == x.rows && codes.cols >= x.cols, "codes ", codes.rows, "x", codes.cols, " of x ",
             x.rows, "x", x.cols);
  PESC_CHECK(factors.cols == 0 || (factors.cols == x.cols && factors.rows == 1), factors.rows, "x",
             factors.cols, " column scales of ", x.cols);
  check_scales(scales, x.rows);
  if (x.rows == 0) return;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(x.rows, 1 << 20));
  with_element(x.dtype, [&](auto t) {
    using T = decltype(t);
    with_pack<T>({x, factors, codes}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      quantize_kernel<kWidth, T><<<blocks, kThreads, 0, stream_of(stream)>>>(
          view<const T>(x), factors.cols > 0 ? pointer<const float>(factors) : nullptr, view<uint8_t>(codes),
          pointer<float>(scales));
      PESC_LAUNCHED("fp8_quantize");
    });
  });
}

void fp8_dequantize(Stream& stream, const Tensor& codes, const Tensor& scales, const Tensor& to) {
  PESC_CHECK(codes.rows == to.rows && codes.cols == to.cols, "codes ", codes.rows, "x", codes.cols, " to ",
             to.rows, "x", to.cols);
  check_scales(scales, codes.rows);
  if (to.size() == 0) return;
  with_element(to.dtype, [&](auto t) {
    using T = decltype(t);
    with_pack<T>({codes, to}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const RowGrid g(to.rows, to.cols / kWidth);
      dequantize_kernel<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(
          view<const uint8_t>(codes), pointer<const float>(scales), view<T>(to));
      PESC_LAUNCHED("fp8_dequantize");
    });
  });
}

void fp8_dequantize_blocks(Stream& stream, const Fp8Blocks& from, const Tensor& to) {
  if (to.size() == 0) return;
  with_element(to.dtype, [&](auto t) {
    using T = decltype(t);
    with_pack<T>({from.codes, to}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const RowGrid g(to.rows, to.cols / kWidth);
      dequantize_blocks_kernel<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(
          view<const uint8_t>(from.codes), view<const float>(from.scales), from.first, view<T>(to));
      PESC_LAUNCHED("fp8_dequantize_blocks");
    });
  });
}

void fp8_transpose(Stream& stream, const Tensor& from, const Tensor& to) {
  PESC_CHECK(to.rows == from.cols && to.cols >= from.rows, "transpose of ", from.rows, "x", from.cols, " to ",
             to.rows, "x", to.cols);
  if (to.size() == 0) return;
  const int64_t tiles = (from.cols + kTile - 1) / kTile * ((to.cols + kTile - 1) / kTile);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(tiles, 1 << 20));
  const View<const uint8_t> in = view<const uint8_t>(from);
  const View<uint8_t> out = view<uint8_t>(to);
  if (packs(from, 4) && packs(to, 4)) {
    transpose_kernel<4><<<blocks, kThreads, 0, stream_of(stream)>>>(in, out);
  } else {
    transpose_kernel<1><<<blocks, kThreads, 0, stream_of(stream)>>>(in, out);
  }
  PESC_LAUNCHED("fp8_transpose");
}

}  // namespace pesc::cuda
