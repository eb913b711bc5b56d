// The kernels between the products of the adapter experts: see ops/adapter.cu.
#pragma once

#include "ops/core/vectors.cuh"

namespace pesc::cuda {

// Exact GELU, x Phi(x), and its derivative Phi(x) + x phi(x).
__device__ __forceinline__ float gelu(float x) {
  return x * normcdff(x);
}
__device__ __forceinline__ float gelu_grad(float x) {
  return fmaf(x, 0.398942280F * expf(-0.5F * x * x), normcdff(x));
}

// Where the d columns of assignment i stand in a narrow tensor. Grouped (row null): its row i. Dense: columns
// [e d, (e + 1) d) of row row[i], e the expert of i.
struct Slices {
  const int32_t* row;
  const int64_t* offsets;  // [experts + 1]
  int64_t experts, dim;

  template <class T>
  __device__ __forceinline__ T* of(const View<T>& t, int64_t i) const {
    if (row == nullptr) return t.row(i);
    int64_t low = 0;  // the last expert whose assignments begin at or before i
    int64_t high = experts;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (offsets[middle] <= i ? low : high) = middle;
    }
    return t.row(row[i]) + low * dim;
  }
};

// scaled = w scale gelu(source), and hidden = source where they are two; `scaled` may be absent.
template <int N, class T>
__global__ void gelu_kernel(Slices at, View<const T> source, const int32_t* slot, const float* weights,
                            float scale, View<T> hidden, View<T> scaled) {
  PESC_FOR_ROWS(i, hidden.rows) {
    const float w = weights[slot[i]] * scale;
    PESC_FOR_COLUMNS(c, hidden.cols / N) {
      float h[N];
      load_floats<N>(at.of(source, i) + c * N, h);
      if (hidden.data != source.data) store_floats<N>(hidden.row(i) + c * N, h);
      if (scaled.data == nullptr) continue;
#pragma unroll
      for (int j = 0; j < N; ++j) h[j] = w * gelu(h[j]);
      store_floats<N>(at.of(scaled, i) + c * N, h);
    }
  }
}

// dweights = scale sum_d(p gelu(h)), scaled = w scale gelu(h), dh = w scale p gelu'(h); kLanes lanes of
// a warp take an assignment. dh may be p.
template <int N, int kLanes, class T>
__global__ void gelu_gradients(Slices at, View<const T> p, View<const T> hidden, const int32_t* slot,
                               const float* weights, float scale, View<T> dh, View<T> scaled,
                               float* dweights) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t step = index_step() / kLanes;
  // The lanes of a warp go round together: those beyond the end take the last assignment again, unwritten.
  for (int64_t at0 = first_index() / kLanes; at0 - at0 % (kWarp / kLanes) < hidden.rows; at0 += step) {
    const bool real = at0 < hidden.rows;
    const int64_t i = real ? at0 : hidden.rows - 1;
    const int32_t mine = slot[i];
    const float w = weights[mine] * scale;
    const T* from = at.of(p, i);
    T* to_dh = at.of(dh, i);
    T* to_scaled = at.of(scaled, i);
    float dot = 0;
    for (int64_t c = lane; real && c < hidden.cols / N; c += kLanes) {
      float h[N], grad[N];
      load_floats<N>(hidden.row(i) + c * N, h);
      load_floats<N>(from + c * N, grad);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float g = gelu(h[j]);
        dot += grad[j] * g;
        grad[j] *= w * gelu_grad(h[j]);
        h[j] = w * g;
      }
      store_floats<N>(to_dh + c * N, grad);
      store_floats<N>(to_scaled + c * N, h);
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(0xffffffffU, dot, offset);
    if (real && lane == 0) dweights[mine] = scale * dot;
  }
}

// Row index[i] of out += row i of in; the rows of an expert are distinct, so no two threads meet.
template <int N, class T>
__global__ void add_distinct_rows(View<const T> in, const int32_t* index, View<T> out) {
  PESC_FOR_ROWS(i, in.rows) {
    T* to = out.row(index[i]);
    PESC_FOR_COLUMNS(c, in.cols / N) {
      float a[N], b[N];
      load_floats<N>(in.row(i) + c * N, a);
      load_floats<N>(to + c * N, b);
#pragma unroll
      for (int j = 0; j < N; ++j) b[j] += a[j];
      store_floats<N>(to + c * N, b);
    }
  }
}

// up [E * H, d] -> side [H, E * d]
template <int N, class T>
__global__ void side_by_side(View<const T> up, View<T> side) {
  PESC_FOR_ROWS(h, side.rows) {
    PESC_FOR_COLUMNS(c, side.cols / N) {
      const int64_t e = c * N / up.cols;
      store_pack<N>(side.row(h) + c * N, load_pack<N>(up.row(e * side.rows + h) + (c * N - e * up.cols)));
    }
  }
}

// The way back: dup [E * H, d] += side [H, E * d]
template <int N>
__global__ void add_stacked(View<const float> side, View<float> dup) {
  PESC_FOR_ROWS(h, side.rows) {
    PESC_FOR_COLUMNS(c, side.cols / N) {
      const int64_t e = c * N / dup.cols;
      float* to = dup.row(e * side.rows + h) + (c * N - e * dup.cols);
      float a[N], b[N];
      load_floats<N>(side.row(h) + c * N, a);
      load_floats<N>(to, b);
#pragma unroll
      for (int j = 0; j < N; ++j) b[j] += a[j];
      store_floats<N>(to, b);
    }
  }
}

}  // namespace pesc::cuda
