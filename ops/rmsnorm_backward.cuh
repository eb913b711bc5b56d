// RMSNorm's backward on a GPU: see ops/rmsnorm.cu. Three kernels: rows in a ring of shared memory, rows that
// a block holds in registers (a larger rank than the ring's registers take, or single elements), and long
// rows.
#pragma once

#include <cuda_pipeline.h>

#include "ops/dropout_mask.cuh"

namespace pesc::cuda {

inline constexpr int kRows = 2;         // of a block without a ring
inline constexpr unsigned kMost = 512;  // threads of a block
inline constexpr int kStages = 3;       // of a ring
inline constexpr int kHeldRank = 8;

// As many threads as a row has packs, in whole warps.
inline unsigned threads_for(int64_t packs, unsigned most) {
  return static_cast<unsigned>(std::clamp<int64_t>((packs + kWarp - 1) / kWarp * kWarp, kWarp, most));
}
inline unsigned blocks_of(int64_t rows) {
  return static_cast<unsigned>(std::min<int64_t>(rows, int64_t{1} << 30));
}

// All that the gradient of y is made of.
template <class T>
struct Gradient {
  View<const T> dy;
  Mask mask;
  View<const T> dropped;
  View<const float> left, right;  // of the low-rank term
};

// g [rows, N] = (dy + dropped + left right) w of rows t0 and the next, from `column` on.
template <int N, int R, class T, class W>
__device__ __forceinline__ void gradient_packs(const Gradient<T>& from, const W* w, int64_t t0, int64_t rows,
                                               int64_t column, float (&g)[R][N]) {
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const int64_t t = t0 + (i < rows ? i : 0);
    load_floats<N>(from.dy.row(t) + column, g[i]);
    if (from.dropped.data == nullptr) continue;
    float term[N];
    load_floats<N>(from.dropped.row(t) + column, term);
    RowMask(from.mask, t).apply(column, term);
#pragma unroll
    for (int j = 0; j < N; ++j) g[i][j] += term[j];
  }
  for (int64_t e = 0; e < from.right.rows; ++e) {
    float weight[N];
    load_floats<N>(from.right.row(e) + column, weight);
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const float d = t0 + i < from.left.rows ? from.left.row(t0 + i)[e] : 0.0F;
#pragma unroll
      for (int j = 0; j < N; ++j) g[i][j] += d * weight[j];
    }
  }
  float weight[N];
  load_floats<N>(w + column, weight);
#pragma unroll
  for (int i = 0; i < R; ++i)
#pragma unroll
    for (int j = 0; j < N; ++j) g[i][j] *= weight[j];
}

// dx += r g - c x of one pack.
template <int N, class T>
__device__ __forceinline__ void add_gradient(const float (&g)[N], const Pack<T, N>& x, float r, float c,
                                             const Pack<T, N>& before, T* dx) {
  float out[N];
#pragma unroll
  for (int j = 0; j < N; ++j) out[j] = as_float(before.v[j]) + (r * g[j] - c * as_float(x.v[j]));
  store_floats<N>(dx, out);
}

// Rows of at most kHeld packs a thread, kRows of them a block.
template <int N, int kHeld, class T, class W>
__global__ void __launch_bounds__(kMost, kHeld == 1 ? 2 : 1)
    backward_kernel(Gradient<T> from, View<const T> x, const W* w, const float* rstd, View<T> dx) {
  const int64_t t0 = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t rows = x.rows - t0 < kRows ? x.rows - t0 : kRows;
  const int packs = static_cast<int>(x.cols / N);
  const int threads = static_cast<int>(blockDim.x);
  const int first = static_cast<int>(threadIdx.x);
  Pack<T, N> held[kHeld][kRows], before[kHeld][kRows];
  float g[kHeld][kRows][N];
  float total[kRows] = {};
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int i = first + k * threads;
    if (i >= packs) break;
#pragma unroll
    for (int q = 0; q < kRows; ++q) {
      const int64_t t = t0 + (q < rows ? q : 0);
      held[k][q] = load_pack<N>(x.row(t) + int64_t{i} * N);
      before[k][q] = load_pack<N>(dx.row(t) + int64_t{i} * N);
    }
    gradient_packs<N, kRows, T, W>(from, w, t0, rows, int64_t{i} * N, g[k]);
#pragma unroll
    for (int q = 0; q < kRows; ++q)
#pragma unroll
      for (int j = 0; j < N; ++j) total[q] += g[k][q][j] * as_float(held[k][q].v[j]);
  }
#pragma unroll
  for (int q = 0; q < kRows; ++q) {
    const double sum = block_sum(static_cast<double>(total[q]));
    if (q >= rows) continue;  // the same for the whole block
    const float r = rstd[t0 + q];
    const float c = static_cast<float>(sum * r / static_cast<double>(x.cols) * r * r);
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int i = first + k * threads;
      if (i < packs)
        add_gradient<N, T>(g[k][q], held[k][q], r, c, before[k][q], dx.row(t0 + q) + int64_t{i} * N);
    }
  }
}

// Longer rows: one a block, and everything is read and made twice.
template <int N, class T, class W>
__global__ void long_backward_kernel(Gradient<T> from, View<const T> x, const W* w, const float* rstd,
                                     View<T> dx) {
  const int64_t t = blockIdx.x;
  const int64_t packs = x.cols / N;
  float g[1][N];
  float total = 0;
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    gradient_packs<N, 1, T, W>(from, w, t, 1, i * N, g);
    const Pack<T, N> a = load_pack<N>(x.row(t) + i * N);
#pragma unroll
    for (int j = 0; j < N; ++j) total += g[0][j] * as_float(a.v[j]);
  }
  const float r = rstd[t];
  const double sum = block_sum(static_cast<double>(total));
  const float c = static_cast<float>(sum * r / static_cast<double>(x.cols) * r * r);
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    gradient_packs<N, 1, T, W>(from, w, t, 1, i * N, g);
    add_gradient<N, T>(g[0], load_pack<N>(x.row(t) + i * N), r, c, load_pack<N>(dx.row(t) + i * N),
                       dx.row(t) + i * N);
  }
}

// What the rows of a ring need of their tokens.
struct RowScalars {
  float left[kHeldRank];
  float rstd;
  int32_t position;
  int64_t sample;
};

// The same with a ring of kStages groups of kR rows in shared memory: a thread copies its packs ahead and
// reads only those, so that rows are on their way while others are summed. A block goes over many groups and
// keeps the weights of the norm and, with kLowRank, at most kHeldRank rows of the right factor in registers.
template <int N, int kHeld, int kR, bool kLowRank, class T, class W>
__global__ void __launch_bounds__(kMost, 1)
    ring_backward_kernel(Gradient<T> from, View<const T> x, const W* w, const float* rstd, View<T> dx) {
  extern __shared__ __align__(16) unsigned char ring[];
  __shared__ double partial[2][kR][kWarp];
  __shared__ RowScalars scalars[kStages + 1][kR];
  const int packs = static_cast<int>(x.cols / N);
  const int threads = static_cast<int>(blockDim.x);
  const int first = static_cast<int>(threadIdx.x);
  const int lane = first % kWarp;
  const int warp = first / kWarp;
  const int rank = static_cast<int>(from.right.rows);
  const bool has_dropped = from.dropped.data != nullptr;
  const int streams = has_dropped ? 4 : 3;
  enum { kX, kDx, kDy, kDropped };
  const auto slot = [&](int stage, int stream, int q, int k) {
    return reinterpret_cast<Pack<T, N>*>(ring) +
           (((stage * streams + stream) * kR + q) * kHeld + k) * threads + first;
  };
  const auto elements = [](const Pack<T, N>* pack) { return reinterpret_cast<const T*>(pack); };
  const int64_t groups = (x.rows + kR - 1) / kR;
  const int64_t step = gridDim.x;
  const auto fetch = [&](int64_t group, int stage) {
    if (group >= groups) return;
#pragma unroll
    for (int q = 0; q < kR; ++q) {
      const int64_t t = group * kR + q < x.rows ? group * kR + q : x.rows - 1;
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int64_t i = first + k * threads;
        if (i >= packs) break;
        const auto copy = [&](int stream, const T* at) {
          __pipeline_memcpy_async(slot(stage, stream, q, k), at + i * N, sizeof(Pack<T, N>));
        };
        copy(kX, x.row(t));
        copy(kDx, dx.row(t));
        copy(kDy, from.dy.row(t));
        if (has_dropped) copy(kDropped, from.dropped.row(t));
      }
    }
  };
  // By the first threads, and read by all after the next __syncthreads: so a group earlier than its rows.
  const auto fetch_scalars = [&](int64_t group, int place) {
    const int q = first / 16;
    const int field = first % 16;
    const int64_t t = group * kR + q;
    if (q >= kR || t >= x.rows) return;
    RowScalars& to = scalars[place][q];
    if (kLowRank && field < rank) {
      if (t < from.left.rows) {
        __pipeline_memcpy_async(&to.left[field], from.left.row(t) + field, sizeof(float));
      } else {
        to.left[field] = 0;
      }
    }
    if (field == kHeldRank) __pipeline_memcpy_async(&to.rstd, rstd + t, sizeof(float));
    if (from.mask.threshold == 0) return;
    if (field == kHeldRank + 1)
      __pipeline_memcpy_async(&to.position, from.mask.positions + t, sizeof(int32_t));
    if (field == kHeldRank + 2) __pipeline_memcpy_async(&to.sample, from.mask.samples + t, sizeof(int64_t));
  };

  float weight[kHeld][N];
  float right[kLowRank ? kHeld : 1][kLowRank ? kHeldRank : 1][N] = {};
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = first + k * threads;
    if (i >= packs) break;
    load_floats<N>(w + i * N, weight[k]);
    if constexpr (kLowRank) {
#pragma unroll
      for (int e = 0; e < kHeldRank; ++e)
        if (e < rank) load_floats<N>(from.right.row(e) + i * N, right[k][e]);
    }
  }
  for (int i = first; i < (kStages + 1) * kR * kHeldRank; i += threads)
    scalars[i / (kR * kHeldRank)][i / kHeldRank % kR].left[i % kHeldRank] = 0;
  __syncthreads();

  int64_t ahead = blockIdx.x;
  fetch_scalars(ahead, 0);
  __pipeline_commit();
#pragma unroll
  for (int stage = 0; stage + 1 < kStages; ++stage, ahead += step) {
    fetch(ahead, stage);
    fetch_scalars(ahead + step, stage + 1);
    __pipeline_commit();
  }
  __pipeline_wait_prior(kStages - 1);
  __syncthreads();
  int stage = 0;
  int place = 0;
  int turn = 0;
  for (int64_t group = blockIdx.x; group < groups; group += step, ahead += step) {
    fetch(ahead, stage == 0 ? kStages - 1 : stage - 1);
    fetch_scalars(ahead + step, place == 0 ? kStages : place - 1);
    __pipeline_commit();
    __pipeline_wait_prior(kStages - 1);
    float g[kHeld][kR][N];
    float r[kR];
#pragma unroll
    for (int q = 0; q < kR; ++q) {
      const RowScalars& mine = scalars[place][q];
      r[q] = mine.rstd;
      Mask mask = from.mask;
      mask.samples = &mine.sample;
      mask.positions = &mine.position;
      const RowMask row_mask(mask, 0);
      float total = 0;
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int64_t i = first + k * threads;
        if (i >= packs) break;
        load_floats<N>(elements(slot(stage, kDy, q, k)), g[k][q]);
        if (has_dropped) {
          float term[N];
          load_floats<N>(elements(slot(stage, kDropped, q, k)), term);
          row_mask.apply(i * N, term);
#pragma unroll
          for (int j = 0; j < N; ++j) g[k][q][j] += term[j];
        }
        if constexpr (kLowRank) {
#pragma unroll
          for (int e = 0; e < kHeldRank; ++e)
#pragma unroll
            for (int j = 0; j < N; ++j) g[k][q][j] += mine.left[e] * right[k][e][j];
        }
        float values[N];
        load_floats<N>(elements(slot(stage, kX, q, k)), values);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          g[k][q][j] *= weight[k][j];
          total += g[k][q][j] * values[j];
        }
      }
      const double sum = warp_sum(static_cast<double>(total));
      if (lane == 0) partial[turn][q][warp] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int q = 0; q < kR; ++q) {
      const double sum = warp_sum(lane < threads / kWarp ? partial[turn][q][lane] : 0.0);
      const int64_t t = group * kR + q;
      if (t >= x.rows) break;
      const float c = static_cast<float>(sum * r[q] / static_cast<double>(x.cols) * r[q] * r[q]);
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int64_t i = first + k * threads;
        if (i >= packs) break;
        const Pack<T, N> before = load_pack<N>(elements(slot(stage, kDx, q, k)));
        add_gradient<N, T>(g[k][q], load_pack<N>(elements(slot(stage, kX, q, k))), r[q], c, before,
                           dx.row(t) + i * N);
      }
    }
    turn = 1 - turn;
    stage = stage + 1 == kStages ? 0 : stage + 1;
    place = place == kStages ? 0 : place + 1;
  }
}

// Whether rows of so many packs fit a ring, and with how many packs of a row a thread: 0 if not. A
// low-rank term takes two rows at a time and one pack of each, for the sake of registers.
[[nodiscard]] inline int ring_packs(int64_t packs, int64_t rank) {
  if (rank > kHeldRank || packs > (rank > 0 ? 1 : 2) * static_cast<int64_t>(kMost)) return 0;
  return rank > 0 ? 1 : 2;
}

template <int N, class T, class W>
void launch_ring_backward(Stream& stream, const Gradient<T>& from, const View<const T>& x, const W* w,
                          const float* rstd, const View<T>& dx) {
  const auto launch = [&](auto held, auto rows, auto low_rank) {
    constexpr int kHeld = decltype(held)::value;
    constexpr int kR = decltype(rows)::value;
    const auto kernel = ring_backward_kernel<N, kHeld, kR, decltype(low_rank)::value, T, W>;
    const int64_t packs = x.cols / N;
    const unsigned threads = threads_for((packs + kHeld - 1) / kHeld, kMost);
    const int streams = from.dropped.data != nullptr ? 4 : 3;
    const int bytes = kStages * streams * kR * kHeld * static_cast<int>(threads * sizeof(Pack<T, N>));
    PESC_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    // Two blocks share the registers and the memory of a multiprocessor where they can.
    const int blocks = threads <= kMost / 2 && bytes <= 100 * 1024 && kR == 1 ? 2 : 1;
    const int64_t groups = (x.rows + kR - 1) / kR;
    const int64_t most = int64_t{blocks} * stream.cuda_stream().multiprocessors;
    kernel<<<blocks_of(std::min(groups, most)), threads, static_cast<size_t>(bytes), stream_of(stream)>>>(
        from, x, w, rstd, dx);
    PESC_LAUNCHED("rmsnorm_ring_backward");
  };
  if (from.right.rows > 0) {
    launch(std::integral_constant<int, 1>{}, std::integral_constant<int, 2>{}, std::true_type{});
  } else {
    launch(std::integral_constant<int, 2>{}, std::integral_constant<int, 1>{}, std::false_type{});
  }
}

}  // namespace pesc::cuda
