// FP8 rows on a GPU: see ops/fp8.h. A block quantises row after row: it keeps a row in registers until its scale
// is known, and the next ones are on their way meanwhile, so that memory is read once. Rows that are longer than the
// registers, or that do not come in packs, are read twice; the second read comes from the cache.
#include <cuda_pipeline.h>

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

// REQUIRES: N divides the columns of x and of codes; a block is of whole warps.
template <int N, class T>
__global__ void long_quantize_kernel(View<const T> x, const float* factors, View<uint8_t> codes,
                                     float* scales) {
  __shared__ uint32_t partial[2][kWarp];
  const int64_t step = static_cast<int64_t>(blockDim.x) * N;
  int turn = 0;
  for (int64_t r = blockIdx.x; r < x.rows; r += gridDim.x, turn = 1 - turn) {
    const T* row = x.row(r);
    uint32_t largest = 0;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < x.cols; i += step) {
      float v[N];
      load_scaled<N>(row, factors, i, v);
      largest = largest_bits<N>(v, largest);
    }
    const RowScale scale(block_largest(largest, partial[turn]));
    if (threadIdx.x == 0) scales[r] = scale.scale;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < codes.cols; i += step) {
      float v[N] = {};
      if (i < x.cols) load_scaled<N>(row, factors, i, v);
      store_pack<N>(codes.row(r) + i, scale.codes<N>(v));
    }
  }
}

constexpr int kStages = 3;              // rows of the ring
constexpr int kHeld = 4;                // packs of a row that a thread holds
constexpr unsigned kMostThreads = 768;  // of a block

// The same with rows of at most kHeld packs a thread. A block copies rows ahead into a ring in shared memory; a thread
// reads only the packs that it copied, and keeps their values until the row's scale is known.
template <int N, class T>
__global__ void __launch_bounds__(kMostThreads, 1)
    quantize_kernel(View<const T> x, const float* factors, View<uint8_t> codes, float* scales) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ uint32_t partial[2][kWarp];
  const int packs = static_cast<int>(x.cols / N);
  const int written = static_cast<int>(codes.cols / N);
  const int threads = static_cast<int>(blockDim.x);
  const int first = static_cast<int>(threadIdx.x);
  const int64_t step = gridDim.x;
  const auto slot = [&](int stage, int k) {
    return reinterpret_cast<Pack<T, N>*>(memory) + (stage * kHeld + k) * threads + first;
  };
  const auto fetch = [&](int64_t r, int stage) {
    if (r < x.rows) {
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int i = first + k * threads;
        if (i < packs) __pipeline_memcpy_async(slot(stage, k), x.row(r) + int64_t{i} * N, sizeof(Pack<T, N>));
      }
    }
    __pipeline_commit();
  };
  int64_t ahead = blockIdx.x;
#pragma unroll
  for (int stage = 0; stage + 1 < kStages; ++stage, ahead += step) fetch(ahead, stage);
  int stage = 0;
  int turn = 0;
  for (int64_t r = blockIdx.x; r < x.rows; r += step, ahead += step, turn = 1 - turn) {
    fetch(ahead, stage == 0 ? kStages - 1 : stage - 1);
    __pipeline_wait_prior(kStages - 1);
    float v[kHeld][N];
    uint32_t largest = 0;
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int i = first + k * threads;
#pragma unroll
      for (int j = 0; j < N; ++j) v[k][j] = 0;
      if (i >= packs) continue;
      load_floats<N>(reinterpret_cast<const T*>(slot(stage, k)), v[k]);
      if (factors != nullptr) {
        float factor[N];
        load_floats<N>(factors + i * N, factor);
#pragma unroll
        for (int j = 0; j < N; ++j) v[k][j] *= factor[j];
      }
      largest = largest_bits<N>(v[k], largest);
    }
    const RowScale scale(block_largest(largest, partial[turn]));
    if (first == 0) scales[r] = scale.scale;
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int i = first + k * threads;
      if (i < written) store_pack<N>(codes.row(r) + int64_t{i} * N, scale.codes<N>(v[k]));
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
}

// Returns whether a row fits, and then launches.
template <int N, class T>
bool launch_ring(Stream& stream, const Fp8Quantize& args) {
  const auto kernel = quantize_kernel<N, T>;
  const int64_t packs = args.codes.cols / N;
  if (packs > int64_t{kHeld} * kMostThreads) return false;
  const auto threads = static_cast<unsigned>((packs + kHeld * kWarp - 1) / (kHeld * kWarp) * kWarp);
  const auto bytes = static_cast<int64_t>(kStages * kHeld * threads * sizeof(Pack<T, N>));
  const unsigned blocks = resident_blocks(stream, kernel, args.x.rows, threads, bytes);
  kernel<<<blocks, threads, static_cast<size_t>(bytes), stream_of(stream)>>>(
      view<const T>(args.x), args.column_scales.cols > 0 ? pointer<const float>(args.column_scales) : nullptr,
      view<uint8_t>(args.codes), pointer<float>(args.scales));
  PESC_LAUNCHED("fp8_quantize");
  return true;
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

constexpr int kTile = 128;  // rows and columns of a tile of a transpose
constexpr int kChunk = 16;  // codes that are read and written at once
constexpr int kTileChunks = kTile / kChunk;
static_assert(kTileChunks * kTile / 4 == kThreads);

// Rows of four words of four codes become columns.
__device__ __forceinline__ void transpose_codes(uint32_t (&w)[4]) {
  const uint32_t low01 = __byte_perm(w[0], w[1], 0x5140), high01 = __byte_perm(w[0], w[1], 0x7362);
  const uint32_t low23 = __byte_perm(w[2], w[3], 0x5140), high23 = __byte_perm(w[2], w[3], 0x7362);
  w[0] = __byte_perm(low01, low23, 0x5410);
  w[1] = __byte_perm(low01, low23, 0x7632);
  w[2] = __byte_perm(high01, high23, 0x5410);
  w[3] = __byte_perm(high01, high23, 0x7632);
}

// A block of kThreads turns a tile: a thread reads 16 codes of four rows, turns them in registers into words of four
// rows of 16 columns, and reads 16 rows of a column back from shared memory. REQUIRES: rows of both come in chunks.
__global__ void transpose_kernel(View<const uint8_t> from, View<uint8_t> to) {
  // [column][chunk of rows]; the chunks of a column are permuted by its number, so that neither side meets a
  // bank twice.
  __shared__ uint4 tile[kTile][kTileChunks];
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t col0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const int chunk = static_cast<int>(threadIdx.x) % kTileChunks;
  const int group = static_cast<int>(threadIdx.x) / kTileChunks;
  uint4 in[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t r = row0 + group * 4 + i;
    const int64_t c = col0 + chunk * kChunk;
    in[i] = r < from.rows && c < from.cols ? *reinterpret_cast<const uint4*>(from.row(r) + c) : uint4{};
  }
  uint32_t words[4][4] = {{in[0].x, in[1].x, in[2].x, in[3].x},
                          {in[0].y, in[1].y, in[2].y, in[3].y},
                          {in[0].z, in[1].z, in[2].z, in[3].z},
                          {in[0].w, in[1].w, in[2].w, in[3].w}};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    transpose_codes(words[w]);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint4& at = tile[chunk * kChunk + w * 4 + j][group / 4 ^ chunk];
      reinterpret_cast<uint32_t*>(&at)[group % 4] = words[w][j];
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int column = group + i * (kTile / 4);  // a row of `to`
    const int64_t r = row0 + chunk * kChunk;
    if (col0 + column < to.rows && r < to.cols)
      *reinterpret_cast<uint4*>(to.row(col0 + column) + r) = tile[column][chunk ^ column / kChunk];
  }
}

// The same code by code, for rows of any width and address.
__global__ void narrow_transpose_kernel(View<const uint8_t> from, View<uint8_t> to) {
  constexpr int kSide = 64;
  __shared__ uint8_t tile[kSide][kSide + 4];
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kSide;
  const int64_t col0 = static_cast<int64_t>(blockIdx.x) * kSide;
  for (int i = static_cast<int>(threadIdx.x); i < kSide * kSide; i += kThreads) {
    const int64_t r = row0 + i / kSide;
    const int64_t c = col0 + i % kSide;
    tile[i / kSide][i % kSide] = r < from.rows && c < from.cols ? from.row(r)[c] : uint8_t{0};
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kSide * kSide; i += kThreads) {
    const int64_t c = col0 + i / kSide;  // a row of `to`
    const int64_t r = row0 + i % kSide;
    if (c < to.rows && r < to.cols) to.row(c)[r] = tile[i % kSide][i / kSide];
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
  PESC_CHECK(codes.cols < (int64_t{1} << 30), codes.cols, " columns");
  with_element(x.dtype, [&](auto t) {
    using T = decltype(t);
    with_pack<T>({x, factors, codes}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      if constexpr (kWidth > 1) {
        if (launch_ring<kWidth, T>(stream, args)) return;
      }
      const auto blocks = static_cast<unsigned>(std::min<int64_t>(x.rows, 1 << 20));
      long_quantize_kernel<kWidth, T><<<blocks, kThreads, 0, stream_of(stream)>>>(
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
  const auto grid = [&](int64_t side) {
    const int64_t across = (from.cols + side - 1) / side;
    const int64_t down = (to.cols + side - 1) / side;
    PESC_CHECK(across < (int64_t{1} << 31) && down < (1 << 16), "transpose of ", from.rows, "x", from.cols);
    return dim3(static_cast<unsigned>(across), static_cast<unsigned>(down));
  };
  const View<const uint8_t> in = view<const uint8_t>(from);
  const View<uint8_t> out = view<uint8_t>(to);
  if (packs(from, kChunk) && packs(to, kChunk)) {
    transpose_kernel<<<grid(kTile), kThreads, 0, stream_of(stream)>>>(in, out);
  } else {
    narrow_transpose_kernel<<<grid(64), kThreads, 0, stream_of(stream)>>>(in, out);
  }
  PESC_LAUNCHED("fp8_transpose");
}

}  // namespace pesc::cuda
