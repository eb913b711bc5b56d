// The kernels between the products of the adapter experts, and launches of those with two forms: see
// ops/adapter.cu.
#pragma once

#include "ops/adapter.h"
#include "ops/core/vectors.cuh"

namespace pesc::cuda {

// Exact GELU, x Phi(x), and its derivative Phi(x) + x phi(x).
__device__ __forceinline__ float gelu(float x) {
  return x * normcdff(x);
}
__device__ __forceinline__ float gelu_grad(float x) {
  return fmaf(x, 0.398942280F * expf(-0.5F * x * x), normcdff(x));
}

// The cells of a narrow tensor, d columns each, and the assignment of each. Grouped: row i is assignment i.
// Dense: [R, E d] in cells of a row r and an expert e; some are of no assignment.
struct Cells {
  const int32_t* slot;     // grouped: [n]
  const int32_t* inverse;  // dense: [R k], 1 + the assignment of a slot or 0
  const int32_t* offsets;  // dense: [E + 1]
  int64_t count, dim;      // count: n or R E
  int64_t experts, top_k;
};

struct Assignment {
  int64_t index;  // in the order of the experts, or -1
  int64_t slot;
};

template <bool kDense>
__device__ __forceinline__ Assignment assignment_of(const Cells& cells, int64_t cell) {
  if constexpr (!kDense) return {cell, cells.slot[cell]};
  const int64_t row = cell / cells.experts;
  const int64_t e = cell - row * cells.experts;
  const int32_t begin = cells.offsets[e];
  const int32_t end = cells.offsets[e + 1];
  for (int64_t slot = row * cells.top_k; slot < (row + 1) * cells.top_k; ++slot) {
    const int32_t at = cells.inverse[slot] - 1;
    if (begin <= at && at < end) return {at, slot};
  }
  return {-1, 0};
}

template <bool kDense, class T>
__device__ __forceinline__ T* columns_of(const Cells& cells, const View<T>& t, int64_t cell) {
  if constexpr (!kDense) return t.row(cell);
  const int64_t row = cell / cells.experts;
  return t.row(row) + (cell - row * cells.experts) * cells.dim;
}

// scaled = w scale gelu(source), and hidden = source where they are two; `scaled` may be absent. A cell of no
// assignment gets zeros.
template <int N, bool kDense, class T>
__global__ void gelu_kernel(Cells cells, View<const T> source, const float* weights, float scale,
                            View<T> hidden, View<T> scaled) {
  PESC_FOR_ROWS(cell, cells.count) {
    const Assignment to = assignment_of<kDense>(cells, cell);
    if (to.index < 0 && scaled.data == nullptr) continue;
    const float w = to.index < 0 ? 0.0F : weights[to.slot] * scale;
    PESC_FOR_COLUMNS(c, cells.dim / N) {
      float h[N] = {};
      if (to.index >= 0) {
        load_floats<N>(columns_of<kDense>(cells, source, cell) + c * N, h);
        if (hidden.data != source.data) store_floats<N>(hidden.row(to.index) + c * N, h);
        if (scaled.data == nullptr) continue;
#pragma unroll
        for (int j = 0; j < N; ++j) h[j] = w * gelu(h[j]);
      }
      store_floats<N>(columns_of<kDense>(cells, scaled, cell) + c * N, h);
    }
  }
}

// dweights = scale sum_d(p gelu(h)), scaled = w scale gelu(h), dh = w scale p gelu'(h); kLanes lanes of
// a warp take a cell, and one of no assignment gets zeros. dh may be p.
template <int N, int kLanes, bool kDense, class T>
__global__ void gelu_gradients(Cells cells, View<const T> p, View<const T> hidden, const float* weights,
                               float scale, View<T> dh, View<T> scaled, float* dweights) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t step = index_step() / kLanes;
  // The lanes of a warp go round together: those beyond the end take the last cell again, unwritten.
  for (int64_t at = first_index() / kLanes; at - at % (kWarp / kLanes) < cells.count; at += step) {
    const bool real = at < cells.count;
    const int64_t cell = real ? at : cells.count - 1;
    const Assignment to = assignment_of<kDense>(cells, cell);
    const float w = to.index < 0 ? 0.0F : weights[to.slot] * scale;
    T* to_dh = columns_of<kDense>(cells, dh, cell);
    T* to_scaled = columns_of<kDense>(cells, scaled, cell);
    float dot = 0;
    for (int64_t c = lane; real && c < cells.dim / N; c += kLanes) {
      float h[N] = {};
      float grad[N] = {};
      if (to.index >= 0) {
        load_floats<N>(hidden.row(to.index) + c * N, h);
        load_floats<N>(columns_of<kDense>(cells, p, cell) + c * N, grad);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const float g = gelu(h[j]);
          dot += grad[j] * g;
          grad[j] *= w * gelu_grad(h[j]);
          h[j] = w * g;
        }
      }
      store_floats<N>(to_dh + c * N, grad);
      store_floats<N>(to_scaled + c * N, h);
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(0xffffffffU, dot, offset);
    if (real && lane == 0 && to.index >= 0) dweights[to.slot] = scale * dot;
  }
}

// A narrow tensor as rows of d columns, for the question of alignment.
inline Tensor narrow(const Tensor& t, int64_t dim) {
  return {t.data, t.dtype, t.rows, dim, t.ld};
}

// A form's kernels: f(std::bool_constant<dense>).
template <class F>
void with_form(const Cells& cells, F f) {
  if (cells.inverse != nullptr) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

inline void launch_gelu(Stream& stream, const AdapterForward& args, const Cells& cells, const Tensor& source,
                        const Tensor& hidden, const Tensor& scaled) {
  if (cells.count * cells.dim == 0) return;
  with_element(hidden.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({narrow(source, cells.dim), hidden, narrow(scaled, cells.dim)}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const RowGrid g(cells.count, cells.dim / kWidth);
      with_form(cells, [&](auto dense) {
        gelu_kernel<kWidth, decltype(dense)::value, T><<<g.grid, g.block, 0, stream_of(stream)>>>(
            cells, view<const T>(source), args.weights.f32(), args.scale, view<T>(hidden), view<T>(scaled));
        PESC_LAUNCHED("adapter_gelu");
      });
    });
  });
}

inline void launch_gradients(Stream& stream, const AdapterBackward& args, const Cells& cells, const Tensor& p,
                             const Tensor& hidden, const Tensor& dh, const Tensor& scaled) {
  if (cells.count * cells.dim == 0) return;
  const int64_t dim = cells.dim;
  with_element(hidden.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({narrow(p, dim), hidden, narrow(dh, dim), narrow(scaled, dim)}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const auto launch = [&](auto lanes, auto dense) {
        constexpr int kLanes = decltype(lanes)::value;
        gelu_gradients<kWidth, kLanes, decltype(dense)::value, T>
            <<<blocks_for(cells.count * kLanes), kThreads, 0, stream_of(stream)>>>(
                cells, view<const T>(p), view<const T>(hidden), args.weights.f32(), args.scale, view<T>(dh),
                view<T>(scaled), args.dweights.f32());
        PESC_LAUNCHED("adapter_gelu_gradients");
      };
      with_form(cells, [&](auto dense) {
        if (dim / kWidth <= 8) {
          launch(std::integral_constant<int, 8>{}, dense);
        } else {
          launch(std::integral_constant<int, kWarp>{}, dense);
        }
      });
    });
  });
}

// The rows of assignments [first, first + out.rows): every row of `in` is read once and written once for each
// of its assignments.
template <int N, class T>
__global__ void spread_rows(View<const T> in, const int32_t* inverse, int64_t top_k, int64_t first,
                            View<T> out) {
  PESC_FOR_ROWS(r, in.rows) {
    const int32_t* mine = inverse + r * top_k;
    PESC_FOR_COLUMNS(c, in.cols / N) {
      const Pack<T, N> pack = load_pack<N>(in.row(r) + c * N);
      for (int64_t j = 0; j < top_k; ++j) {
        const int64_t i = mine[j] - 1 - first;
        if (0 <= i && i < out.rows) store_pack<N>(out.row(i) + c * N, pack);
      }
    }
  }
}

// The way back: a row of out is, or with `add` grows by, the sum over its assignments among those of `in`,
// [first, first + in.rows), in their order, which is that of the experts.
template <int N, class T>
__global__ void sum_rows(View<const T> in, const int32_t* inverse, int64_t top_k, int64_t first, bool add,
                         View<T> out) {
  PESC_FOR_ROWS(r, out.rows) {
    const int32_t* mine = inverse + r * top_k;
    const auto after = [&](int64_t i) {  // the next assignment, or in.rows
      int64_t next = in.rows;
      for (int64_t j = 0; j < top_k; ++j) {
        const int64_t other = mine[j] - 1 - first;
        if (i < other && other < next) next = other;
      }
      return next;
    };
    const int64_t begin = after(-1);
    if (add && begin == in.rows) continue;
    PESC_FOR_COLUMNS(c, out.cols / N) {
      float total[N] = {};
      if (add) load_floats<N>(out.row(r) + c * N, total);
      for (int64_t i = begin; i < in.rows; i = after(i)) {
        float more[N];
        load_floats<N>(in.row(i) + c * N, more);
#pragma unroll
        for (int j = 0; j < N; ++j) total[j] += more[j];
      }
      store_floats<N>(out.row(r) + c * N, total);
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
