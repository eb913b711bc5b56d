// The tile kernels of attention on the GPU, for any head_dim up to 256 and both element types; arithmetic in
// float32.
//
// A block of kThreads threads takes a tile of kTile queries (or keys) of one head and walks over tiles of
// kTile keys (or queries). Thread t owns row t / 8 of its tile and the columns t % 8, t % 8 + 8, ... : four
// of the kTile columns of a tile of scores, and up to kColumns of the head's. The eight threads of a row are
// lanes of one warp. Every output element has one writer, which adds in rising order.
#pragma once

#include "ops/attention.h"
#include "ops/core/launch.cuh"

namespace pesc::cuda {

inline constexpr int kTile = 32;
inline constexpr int kRowThreads = kThreads / kTile;  // 8
inline constexpr int kScores = kTile / kRowThreads;   // scores of a row that one thread owns: 4
inline constexpr int kScoreStride = kTile + 1;

// Rows [first, first + kTile) of one segment's queries (forward, dq) or keys (dk, dv).
struct AttentionTile {
  int32_t q_begin, q_len, kv_begin, kv_len, first;
};

template <class T>
struct AttentionViews {
  View<T> q, k, v, out, dout, dq, dk, dv;
  View<float> lse;
  View<float> delta;    // [HQ, Q] rowsum(dO o O)
  int head_dim, group;  // group: query heads per KV head
  float scale;
};

// The stride of a tile's rows in shared memory: odd, so that a column lies in different banks.
__host__ __device__ constexpr int tile_stride(int head_dim) {
  return head_dim | 1;
}
[[nodiscard]] constexpr size_t tile_shared_bytes(int head_dim, int tiles, int scores) {
  return sizeof(float) * static_cast<size_t>(kTile * (tiles * tile_stride(head_dim) + scores * kScoreStride));
}

// Rows [begin, begin + rows) and a head's columns of x into a shared tile; the rows after `rows` are zero.
template <class T>
__device__ __forceinline__ void load_tile(const View<T>& x, int64_t begin, int rows, int64_t column,
                                          int head_dim, float* tile) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int r = static_cast<int>(threadIdx.x) / kWarp; r < kTile; r += kThreads / kWarp)
    for (int c = lane; c < head_dim; c += kWarp)
      tile[r * tile_stride(head_dim) + c] = r < rows ? as_float(x.row(begin + r)[column + c]) : 0.0F;
}

// scores[i] = row . other[t % 8 + 8 i], over head_dim.
__device__ __forceinline__ void row_products(const float* row, const float* other, int head_dim, int first,
                                             float (&scores)[kScores]) {
  const int stride = tile_stride(head_dim);
#pragma unroll
  for (int i = 0; i < kScores; ++i) scores[i] = 0;
  for (int d = 0; d < head_dim; ++d) {
    const float a = row[d];
#pragma unroll
    for (int i = 0; i < kScores; ++i) scores[i] += a * other[(first + kRowThreads * i) * stride + d];
  }
}

// sums[j] += weights[n] * tile[n][t % 8 + 8 j] over the tile's rows n.
template <int kColumns>
__device__ __forceinline__ void add_weighted_rows(const float* weights, const float* tile, int head_dim,
                                                  int first, float (&sums)[kColumns]) {
  const int stride = tile_stride(head_dim);
  for (int n = 0; n < kTile; ++n) {
    const float w = weights[n];
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      if (first + kRowThreads * j < head_dim) sums[j] += w * tile[n * stride + first + kRowThreads * j];
  }
}

template <int kColumns, class T>
__device__ __forceinline__ void store_row(T* to, int head_dim, int first, const float (&sums)[kColumns],
                                          float factor) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
    if (first + kRowThreads * j < head_dim) to[first + kRowThreads * j] = from_float<T>(sums[j] * factor);
}

// Sum and maximum over the eight threads of a row.
__device__ __forceinline__ float row_sum(float v) {
#pragma unroll
  for (int offset = kRowThreads / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffU, v, offset);
  return v;
}
__device__ __forceinline__ float row_max(float v) {
#pragma unroll
  for (int offset = kRowThreads / 2; offset > 0; offset /= 2)
    v = fmaxf(v, __shfl_xor_sync(0xffffffffU, v, offset));
  return v;
}

// Grid: (tiles of queries, query heads).
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads)
    attention_forward_tiles(AttentionViews<T> a, const AttentionTile* tiles) {
  extern __shared__ float shared[];
  const AttentionTile t = tiles[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  const int dim = a.head_dim;
  const int stride = tile_stride(dim);
  float* queries = shared;
  float* keys = queries + kTile * stride;
  float* values = keys + kTile * stride;
  float* weights = values + kTile * stride;
  const int row = static_cast<int>(threadIdx.x) / kRowThreads;
  const int first = static_cast<int>(threadIdx.x) % kRowThreads;
  const int rows = min(kTile, t.q_len - t.first);
  const int before = t.kv_len - t.q_len;  // keys before the first query
  const int last_key = t.first + row + before;
  const int64_t q_column = static_cast<int64_t>(head) * dim;
  const int64_t kv_column = static_cast<int64_t>(head / a.group) * dim;

  load_tile(a.q, t.q_begin + t.first, rows, q_column, dim, queries);
  float sums[kColumns] = {};
  float top = -INFINITY;
  float total = 0;
  const int end = min(t.kv_len, t.first + rows + before);  // keys that the tile's last row sees
  for (int key = 0; key < end; key += kTile) {
    __syncthreads();  // all threads have read the previous tiles
    load_tile(a.k, t.kv_begin + key, min(kTile, end - key), kv_column, dim, keys);
    load_tile(a.v, t.kv_begin + key, min(kTile, end - key), kv_column, dim, values);
    __syncthreads();
    float scores[kScores];
    row_products(queries + row * stride, keys, dim, first, scores);
    float most = -INFINITY;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const int j = key + first + kRowThreads * i;
      scores[i] = j <= last_key && j < end ? scores[i] * a.scale : -INFINITY;
      most = fmaxf(most, scores[i]);
    }
    // Every row sees the first tile's first key, so that `next` is a number from the first tile on.
    const float next = fmaxf(top, row_max(most));
    const float shrink = expf(top - next);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const float p = expf(scores[i] - next);
      weights[row * kScoreStride + first + kRowThreads * i] = p;
      sum += p;
    }
    total = total * shrink + row_sum(sum);
    top = next;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) sums[j] *= shrink;
    __syncwarp();  // a row's weights are written and read by one warp
    add_weighted_rows(weights + row * kScoreStride, values, dim, first, sums);
  }
  if (row >= rows) return;
  const int64_t token = t.q_begin + t.first + row;
  store_row(a.out.row(token) + q_column, dim, first, sums, 1.0F / total);
  if (a.lse.data != nullptr && first == 0) a.lse.row(head)[token] = top + logf(total);
}

// delta[h, q] = dO . O of the head. One warp per (token, head).
template <class T>
__global__ void attention_delta(AttentionViews<T> a, int heads) {
  const int64_t warp = first_index() / kWarp;
  const int64_t token = warp / heads;
  if (token >= a.out.rows) return;
  const int64_t head = warp % heads;
  const T* out = a.out.row(token) + head * a.head_dim;
  const T* dout = a.dout.row(token) + head * a.head_dim;
  float sum = 0;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int c = lane; c < a.head_dim; c += kWarp) sum += as_float(out[c]) * as_float(dout[c]);
  sum = warp_sum(sum);
  if (lane == 0) a.delta.row(head)[token] = sum;
}

// Grid: (tiles of queries, query heads). Keys and queries are the same tokens.
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads)
    attention_dq_tiles(AttentionViews<T> a, const AttentionTile* tiles) {
  extern __shared__ float shared[];
  const AttentionTile t = tiles[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  const int dim = a.head_dim;
  const int stride = tile_stride(dim);
  float* queries = shared;
  float* douts = queries + kTile * stride;
  float* keys = douts + kTile * stride;
  float* values = keys + kTile * stride;
  float* dscores = values + kTile * stride;
  const int row = static_cast<int>(threadIdx.x) / kRowThreads;
  const int first = static_cast<int>(threadIdx.x) % kRowThreads;
  const int rows = min(kTile, t.q_len - t.first);
  const int64_t q_column = static_cast<int64_t>(head) * dim;
  const int64_t kv_column = static_cast<int64_t>(head / a.group) * dim;
  const int64_t token = t.q_begin + t.first + min(row, rows - 1);
  const float lse = a.lse.row(head)[token];
  const float delta = a.delta.row(head)[token];

  load_tile(a.q, t.q_begin + t.first, rows, q_column, dim, queries);
  load_tile(a.dout, t.q_begin + t.first, rows, q_column, dim, douts);
  float sums[kColumns] = {};
  const int end = t.first + rows;
  for (int key = 0; key < end; key += kTile) {
    __syncthreads();
    load_tile(a.k, t.kv_begin + key, min(kTile, end - key), kv_column, dim, keys);
    load_tile(a.v, t.kv_begin + key, min(kTile, end - key), kv_column, dim, values);
    __syncthreads();
    float scores[kScores];
    float dp[kScores];
    row_products(queries + row * stride, keys, dim, first, scores);
    row_products(douts + row * stride, values, dim, first, dp);
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const int j = first + kRowThreads * i;
      const bool seen = key + j <= t.first + row && key + j < end;
      const float p = seen ? expf(scores[i] * a.scale - lse) : 0.0F;
      dscores[row * kScoreStride + j] = seen ? p * (dp[i] - delta) * a.scale : 0.0F;
    }
    __syncwarp();
    add_weighted_rows(dscores + row * kScoreStride, keys, dim, first, sums);
  }
  if (row < rows) store_row(a.dq.row(t.q_begin + t.first + row) + q_column, dim, first, sums, 1.0F);
}

// Grid: (tiles of keys, KV heads). The query heads of the group one after the other, their queries in rising
// order.
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads)
    attention_dkv_tiles(AttentionViews<T> a, const AttentionTile* tiles) {
  extern __shared__ float shared[];
  const AttentionTile t = tiles[blockIdx.x];
  const int kv_head = static_cast<int>(blockIdx.y);
  const int dim = a.head_dim;
  const int stride = tile_stride(dim);
  float* keys = shared;
  float* values = keys + kTile * stride;
  float* queries = values + kTile * stride;
  float* douts = queries + kTile * stride;
  float* weights = douts + kTile * stride;
  float* dscores = weights + kTile * kScoreStride;
  const int row = static_cast<int>(threadIdx.x) / kRowThreads;
  const int first = static_cast<int>(threadIdx.x) % kRowThreads;
  const int rows = min(kTile, t.kv_len - t.first);
  const int64_t kv_column = static_cast<int64_t>(kv_head) * dim;

  load_tile(a.k, t.kv_begin + t.first, rows, kv_column, dim, keys);
  load_tile(a.v, t.kv_begin + t.first, rows, kv_column, dim, values);
  float dk[kColumns] = {};
  float dv[kColumns] = {};
  for (int head = kv_head * a.group; head < (kv_head + 1) * a.group; ++head) {
    const int64_t q_column = static_cast<int64_t>(head) * dim;
    // Tiles of queries and of keys begin at the same places: the first to see these keys is their own.
    for (int query = t.first; query < t.q_len; query += kTile) {
      const int queries_here = min(kTile, t.q_len - query);
      __syncthreads();
      load_tile(a.q, t.q_begin + query, queries_here, q_column, dim, queries);
      load_tile(a.dout, t.q_begin + query, queries_here, q_column, dim, douts);
      __syncthreads();
      float scores[kScores];
      float dp[kScores];
      row_products(keys + row * stride, queries, dim, first, scores);
      row_products(values + row * stride, douts, dim, first, dp);
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        const int j = first + kRowThreads * i;
        const bool seen = j < queries_here && t.first + row <= query + j;
        float p = 0;
        float ds = 0;
        if (seen) {
          const int64_t token = t.q_begin + query + j;
          p = expf(scores[i] * a.scale - a.lse.row(head)[token]);
          ds = p * (dp[i] - a.delta.row(head)[token]) * a.scale;
        }
        weights[row * kScoreStride + j] = p;
        dscores[row * kScoreStride + j] = ds;
      }
      __syncwarp();
      add_weighted_rows(weights + row * kScoreStride, douts, dim, first, dv);
      add_weighted_rows(dscores + row * kScoreStride, queries, dim, first, dk);
    }
  }
  if (row >= rows) return;
  store_row(a.dk.row(t.kv_begin + t.first + row) + kv_column, dim, first, dk, 1.0F);
  store_row(a.dv.row(t.kv_begin + t.first + row) + kv_column, dim, first, dv, 1.0F);
}

}  // namespace pesc::cuda
