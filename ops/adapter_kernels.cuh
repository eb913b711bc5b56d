// The kernels between the GEMMs of the adapter experts, for both forms of ops/adapter_scratch.h: see
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

// Where the d columns of each assignment lie in a narrow tensor. Grouped: in the assignment's own row. Dense:
// in its row of [R, E d], at the columns of its expert.
struct Cells {
  const int32_t* choice;   // [count]
  const int32_t* inverse;  // dense: [R k], 1 + the assignment of a choice or 0
  const int32_t* offsets;  // dense: [E + 1]
  int64_t count, dim;      // assignments
  int64_t rows, experts, top_k;

  __device__ __forceinline__ int64_t expert_of(int64_t i) const {
    int64_t low = 0;  // the last expert whose assignments begin at or before i
    int64_t high = experts;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (offsets[middle] <= i ? low : high) = middle;
    }
    return low;
  }
};
struct Cell {
  int64_t row, expert;  // of the narrow tensor
};
template <bool kDense>
__device__ __forceinline__ Cell cell_of(const Cells& cells, int64_t i, int32_t choice) {
  if constexpr (!kDense) return {i, 0};
  return {choice / static_cast<int32_t>(cells.top_k), cells.expert_of(i)};
}

// Dense form: zeroes the cells without an assignment. The cells between an assignment and the next one of its
// row (cyclically) are zeroed together with it; rows without assignments are zeroed separately.
template <int N, int kLanes, class T>
class Zeros {
 public:
  __device__ __forceinline__ Zeros(const Cells& cells, const Cell& cell, int64_t i)
      : row_(cell.row), packs_(cells.dim / N), all_(cells.experts * packs_) {
    int64_t next = cells.count;
    int64_t least = i;
    for (int64_t j = 0; j < cells.top_k; ++j) {
      const int64_t at = cells.inverse[cell.row * cells.top_k + j] - 1;
      if (at > i && at < next) next = at;
      if (at >= 0 && at < least) least = at;
    }
    const int64_t end = next < cells.count ? cells.expert_of(next) : cells.experts + cells.expert_of(least);
    first_ = (cell.expert + 1) * packs_;
    count_ = (end - cell.expert - 1) * packs_;
  }
  __device__ __forceinline__ Zeros(const Cells& cells, int64_t row)
      : row_(row), packs_(cells.dim / N), all_(cells.experts * packs_), first_(0), count_(all_) {
    for (int64_t j = 0; j < cells.top_k; ++j)
      if (cells.inverse[row * cells.top_k + j] > 0) count_ = 0;
  }
  __device__ __forceinline__ void write(const View<T>& t, int lane) const {
    constexpr float zeros[N] = {};
    for (int64_t c = lane; c < count_; c += kLanes) {
      const int64_t at = first_ + c < all_ ? first_ + c : first_ + c - all_;
      store_floats<N>(t.row(row_) + at * N, zeros);
    }
  }

 private:
  int64_t row_, packs_, all_, first_, count_;
};

// Writes scaled = w scale gelu(source) (optional), and pre_act = source unless they are one tensor. kLanes
// threads process an assignment.
template <int N, int kLanes, bool kDense, class T>
__global__ void gelu_kernel(Cells cells, View<const T> source, const float* weights, float scale,
                            View<T> pre_act, View<T> scaled) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t step = index_step() / kLanes;
  for (int64_t i = first_index() / kLanes; i < cells.count; i += step) {
    const int32_t choice = cells.choice[i];
    const float w = weights[choice] * scale;
    const Cell cell = cell_of<kDense>(cells, i, choice);
    const int64_t column = cell.expert * cells.dim;
    for (int64_t c = lane; c < cells.dim / N; c += kLanes) {
      float h[N];
      load_floats<N>(source.row(cell.row) + column + c * N, h);
      if (pre_act.data != source.data) store_floats<N>(pre_act.row(i) + c * N, h);
      if (scaled.data == nullptr) continue;
#pragma unroll
      for (int j = 0; j < N; ++j) h[j] = w * gelu(h[j]);
      store_floats<N>(scaled.row(cell.row) + column + c * N, h);
    }
    if constexpr (kDense)
      if (scaled.data != nullptr) Zeros<N, kLanes, T>(cells, cell, i).write(scaled, lane);
  }
  if constexpr (kDense) {
    if (scaled.data == nullptr) return;
    for (int64_t row = first_index() / kLanes; row < cells.rows; row += step)
      Zeros<N, kLanes, T>(cells, row).write(scaled, lane);
  }
}

// Writes dweights = scale sum_d(p gelu(h)), scaled = w scale gelu(h), dh = w scale p gelu'(h). kLanes threads
// of a warp process an assignment. dh may alias p.
template <int N, int kLanes, bool kDense, class T>
__global__ void gelu_gradients(Cells cells, View<const T> p, View<const T> pre_act, const float* weights,
                               float scale, View<T> dh, View<T> scaled, float* dweights) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t step = index_step() / kLanes;
  // All threads of a warp stay in the loop for the shuffles: those beyond the end repeat the last assignment
  // without writing.
  for (int64_t at = first_index() / kLanes; at - at % (kWarp / kLanes) < cells.count; at += step) {
    const bool real = at < cells.count;
    const int64_t i = real ? at : cells.count - 1;
    const int32_t choice = cells.choice[i];
    const float w = weights[choice] * scale;
    const Cell cell = cell_of<kDense>(cells, i, choice);
    const int64_t column = cell.expert * cells.dim;
    float dot = 0;
    for (int64_t c = lane; real && c < cells.dim / N; c += kLanes) {
      float h[N], grad[N];
      load_floats<N>(pre_act.row(i) + c * N, h);
      load_floats<N>(p.row(cell.row) + column + c * N, grad);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float g = gelu(h[j]);
        dot += grad[j] * g;
        grad[j] *= w * gelu_grad(h[j]);
        h[j] = w * g;
      }
      store_floats<N>(dh.row(cell.row) + column + c * N, grad);
      store_floats<N>(scaled.row(cell.row) + column + c * N, h);
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(0xffffffffU, dot, offset);
    if (real && lane == 0) dweights[choice] = scale * dot;
    if constexpr (kDense) {
      if (!real) continue;
      const Zeros<N, kLanes, T> zeros(cells, cell, i);
      zeros.write(dh, lane);
      zeros.write(scaled, lane);
    }
  }
  if constexpr (kDense) {
    for (int64_t row = first_index() / kLanes; row < cells.rows; row += step) {
      const Zeros<N, kLanes, T> zeros(cells, row);
      zeros.write(dh, lane);
      zeros.write(scaled, lane);
    }
  }
}

// A narrow tensor as rows of d columns, to test its alignment.
inline Tensor narrow(const Tensor& t, int64_t dim) {
  return {t.data, t.dtype, t.rows, dim, t.ld};
}

// Calls f(threads per assignment, whether dense), both as integral constants.
template <int N, class F>
void with_form(const Cells& cells, F f) {
  const auto with_lanes = [&](auto dense) {
    if (cells.dim / N <= 8) {
      f(std::integral_constant<int, 8>{}, dense);
    } else {
      f(std::integral_constant<int, kWarp>{}, dense);
    }
  };
  if (cells.inverse != nullptr) {
    with_lanes(std::true_type{});
  } else {
    with_lanes(std::false_type{});
  }
}

inline void launch_gelu(Stream& stream, const AdapterForward& args, const Cells& cells, const Tensor& source,
                        const Tensor& pre_act, const Tensor& scaled) {
  if (cells.count * cells.dim == 0) return;
  with_element(pre_act.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({narrow(source, cells.dim), pre_act, narrow(scaled, cells.dim)}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      with_form<kWidth>(cells, [&](auto lanes, auto dense) {
        constexpr int kLanes = decltype(lanes)::value;
        gelu_kernel<kWidth, kLanes, decltype(dense)::value, T>
            <<<blocks_for(cells.count * kLanes), kThreads, 0, stream_of(stream)>>>(
                cells, view<const T>(source), args.topk_weights.f32(), args.scale, view<T>(pre_act),
                view<T>(scaled));
        PESC_LAUNCHED("adapter_gelu");
      });
    });
  });
}

inline void launch_gradients(Stream& stream, const AdapterBackward& args, const Cells& cells, const Tensor& p,
                             const Tensor& pre_act, const Tensor& dh, const Tensor& scaled) {
  if (cells.count * cells.dim == 0) return;
  const int64_t dim = cells.dim;
  with_element(pre_act.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({narrow(p, dim), pre_act, narrow(dh, dim), narrow(scaled, dim)}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      with_form<kWidth>(cells, [&](auto lanes, auto dense) {
        constexpr int kLanes = decltype(lanes)::value;
        gelu_gradients<kWidth, kLanes, decltype(dense)::value, T>
            <<<blocks_for(cells.count * kLanes), kThreads, 0, stream_of(stream)>>>(
                cells, view<const T>(p), view<const T>(pre_act), args.topk_weights.f32(), args.scale,
                view<T>(dh), view<T>(scaled), args.dtopk_weights.f32());
        PESC_LAUNCHED("adapter_gelu_gradients");
      });
    });
  });
}

// Writes out[i - first] = in[row of assignment i] for assignments [first, first + out.rows). Every row of
// `in` is read once and written once for each of its assignments.
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

// The reverse: a row of out is written with (or, with `add`, added to by) the sum of its assignments' rows of
// `in`, which holds assignments [first, first + in.rows), in expert order.
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

// The reverse: dup [E * H, d] += side [H, E * d]
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
