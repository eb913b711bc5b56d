// SwiGLU on a GPU. With s = 1 / (1 + exp(-gate)):
//   dup = dh gate s;  dgate = dh up s (1 + gate (1 - s))
// T tokens, F columns; all tensors of one element type, any row strides.
#include "ops/core/vectors.cuh"
#include "ops/cuda_ops.h"
#include "ops/swiglu.h"

namespace pesc::cuda {
namespace {

template <int N, class T>
__global__ void forward_kernel(View<const T> gate_up, View<T> h) {
  PESC_FOR_ROWS(r, h.rows) {
    PESC_FOR_COLUMNS(i, h.cols / N) {
      float gate[N], up[N];
      load_floats<N>(gate_up.row(r) + i * N, gate);
      load_floats<N>(gate_up.row(r) + h.cols + i * N, up);
#pragma unroll
      for (int j = 0; j < N; ++j) up[j] *= gate[j] / (1.0F + expf(-gate[j]));
      store_floats<N>(h.row(r) + i * N, up);
    }
  }
}

// dgate_up may be gate_up: a thread writes only what it alone has read.
template <int N, class T>
__global__ void backward_kernel(View<const T> dh, View<T> gate_up, View<T> dgate_up) {
  PESC_FOR_ROWS(r, dh.rows) {
    PESC_FOR_COLUMNS(i, dh.cols / N) {
      float d[N], gate[N], up[N];
      load_floats<N>(dh.row(r) + i * N, d);
      load_floats<N>(gate_up.row(r) + i * N, gate);
      load_floats<N>(gate_up.row(r) + dh.cols + i * N, up);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float g = gate[j];
        const float s = 1.0F / (1.0F + expf(-g));
        gate[j] = d[j] * up[j] * s * fmaf(g, 1.0F - s, 1.0F);
        up[j] = d[j] * g * s;
      }
      store_floats<N>(dgate_up.row(r) + i * N, gate);
      store_floats<N>(dgate_up.row(r) + dh.cols + i * N, up);
    }
  }
}

void check(const Tensor& gate_up, const Tensor& h) {
  PESC_CHECK(gate_up.dtype == h.dtype, dtype_name(gate_up.dtype), ", ", dtype_name(h.dtype));
  PESC_CHECK(gate_up.rows == h.rows && gate_up.cols == 2 * h.cols, "gate and up ", gate_up.rows, "x",
             gate_up.cols, " for ", h.rows, "x", h.cols);
}

// Gate and up as tensors of their own, for the question of alignment.
Tensor gate_of(const Tensor& t) {
  return t.col_range(0, t.cols / 2);
}
Tensor up_of(const Tensor& t) {
  return t.col_range(t.cols / 2, t.cols);
}

}  // namespace

void swiglu_forward(Stream& stream, const Tensor& gate_up, const Tensor& h) {
  check(gate_up, h);
  if (h.size() == 0) return;
  with_element(h.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({gate_of(gate_up), up_of(gate_up), h}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const RowGrid g(h.rows, h.cols / kWidth);
      forward_kernel<kWidth, T>
          <<<g.grid, g.block, 0, stream_of(stream)>>>(view<const T>(gate_up), view<T>(h));
      PESC_LAUNCHED("swiglu_forward");
    });
  });
}

void swiglu_backward(Stream& stream, const Tensor& dh, const Tensor& gate_up, const Tensor& dgate_up) {
  check(gate_up, dh);
  check(dgate_up, dh);
  if (dh.size() == 0) return;
  with_element(dh.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({gate_of(gate_up), up_of(gate_up), gate_of(dgate_up), up_of(dgate_up), dh}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const RowGrid g(dh.rows, dh.cols / kWidth);
      backward_kernel<kWidth, T>
          <<<g.grid, g.block, 0, stream_of(stream)>>>(view<const T>(dh), view<T>(gate_up), view<T>(dgate_up));
      PESC_LAUNCHED("swiglu_backward");
    });
  });
}

}  // namespace pesc::cuda
