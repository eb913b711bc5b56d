// SwiGLU on a GPU. With s = 1 / (1 + exp(-gate)):
//   dup = dh gate s;  dgate = dh up s (1 + gate (1 - s))
// T tokens, F columns; all tensors have one element type and any row stride. With a LoRA path the backward
// first computes the gradient before the mask (a GEMM); one kernel then does everything elementwise and
// leaves dropout(h) in dh, for the weight gradient (a GEMM).
#include "ops/cuda_ops.h"
#include "ops/dropout_mask.cuh"
#include "ops/swiglu.h"

namespace pesc::cuda {
namespace {

__device__ __forceinline__ float sigmoid(float z) {
  return __fdividef(1.0F, 1.0F + __expf(-z));
}

// Writes h and dropout(h). Either is optional.
template <int N, class T>
__global__ void forward_kernel(View<const T> gate_up, int64_t cols, View<T> h, Mask mask, View<T> dropped) {
  PESC_FOR_ROWS(r, gate_up.rows) {
    const RowMask row(mask, r);
#pragma unroll 2
    PESC_FOR_COLUMNS(i, cols / N) {
      float gate[N], up[N];
      load_floats<N>(gate_up.row(r) + i * N, gate);
      load_floats<N>(gate_up.row(r) + cols + i * N, up);
#pragma unroll
      for (int j = 0; j < N; ++j) up[j] *= gate[j] * sigmoid(gate[j]);
      if (h.data != nullptr) store_floats<N>(h.row(r) + i * N, up);
      if (dropped.data == nullptr) continue;
      row.apply(i * N, up);
      store_floats<N>(dropped.row(r) + i * N, up);
    }
  }
}

// With a term: adds mask(term) to dh first, and leaves dropout(h) in dh. dgate_up may alias gate_up: a thread
// writes only elements that no other thread reads.
template <int N, class T>
__global__ void backward_kernel(View<T> dh, View<const T> gate_up, View<T> dgate_up, Mask mask,
                                View<const T> term) {
  PESC_FOR_ROWS(r, dh.rows) {
    const RowMask row(mask, r);
#pragma unroll 2
    PESC_FOR_COLUMNS(i, dh.cols / N) {
      float d[N], gate[N], up[N];
      load_floats<N>(dh.row(r) + i * N, d);
      load_floats<N>(gate_up.row(r) + i * N, gate);
      load_floats<N>(gate_up.row(r) + dh.cols + i * N, up);
      if (term.data != nullptr) {
        // The mask is applied to ones, so that both uses share one Philox call.
        float plus[N], factor[N];
        load_floats<N>(term.row(r) + i * N, plus);
#pragma unroll
        for (int j = 0; j < N; ++j) factor[j] = 1.0F;
        row.apply(i * N, factor);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          // A dropped value counts as zero even when it is NaN.
          d[j] += factor[j] > 0 ? plus[j] * factor[j] : 0.0F;
          plus[j] = factor[j] > 0 ? up[j] * gate[j] * sigmoid(gate[j]) * factor[j] : 0.0F;
        }
        store_floats<N>(dh.row(r) + i * N, plus);
      }
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float g = gate[j];
        const float s = sigmoid(g);
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

// Gate and up as separate tensors, to test their alignment.
Tensor gate_of(const Tensor& t) {
  return t.col_range(0, t.cols / 2);
}
Tensor up_of(const Tensor& t) {
  return t.col_range(t.cols / 2, t.cols);
}

}  // namespace

void swiglu_forward(Stream& stream, const Tensor& gate_up, const Tensor& h, const DroppedCopy& dropped) {
  for (const Tensor& t : {h, dropped.y})
    if (t.present()) check(gate_up, t);
  check_mask(dropped.mask, dropped.y.present() ? gate_up.rows : dropped.mask.samples.size());
  if (gate_up.size() == 0) return;
  with_element(gate_up.dtype, [&](auto element) {
    using T = decltype(element);
    with_masked_pack<T>(dropped.mask, {gate_of(gate_up), up_of(gate_up), h, dropped.y}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const int64_t cols = gate_up.cols / 2;
      const WholeRowGrid g(gate_up.rows, cols / kWidth);
      forward_kernel<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(
          view<const T>(gate_up), cols, view_or_none<T>(h), Mask(dropped.mask), view_or_none<T>(dropped.y));
      PESC_LAUNCHED("swiglu_forward");
    });
  });
}

void swiglu_backward(Stream& stream, const SwigluBackward& args, Arena& scratch) {
  const Tensor& dh = args.dh;
  const Tensor& gate_up = args.gate_up;
  const Tensor& dgate_up = args.dgate_up;
  const bool lora = args.lora.dout.present();
  check(gate_up, dh);
  check(dgate_up, dh);
  if (dh.size() == 0) return;
  Arena::Scope scope(scratch);
  Tensor term;
  if (lora) {
    check_mask(args.lora.dropout, dh.rows);
    term = scratch.allocate(dh.rows, dh.cols, dh.dtype);
    lora_input_gradient(stream, args.lora, term);
  }
  with_element(dh.dtype, [&](auto element) {
    using T = decltype(element);
    with_masked_pack<T>(args.lora.dropout,
                        {gate_of(gate_up), up_of(gate_up), gate_of(dgate_up), up_of(dgate_up), dh, term},
                        [&](auto width) {
                          constexpr int kWidth = decltype(width)::value;
                          const WholeRowGrid g(dh.rows, dh.cols / kWidth);
                          backward_kernel<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(
                              view<T>(dh), view<const T>(gate_up), view<T>(dgate_up), Mask(args.lora.dropout),
                              view_or_none<const T>(term));
                          PESC_LAUNCHED("swiglu_backward");
                        });
  });
  if (lora) lora_weight_gradient(stream, args.lora, dh);
}

}  // namespace pesc::cuda
