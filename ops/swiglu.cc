// SwiGLU on the CPU. With s = 1 / (1 + exp(-gate)):
//   dup = dh gate s;  dgate = dh up s (1 + gate (1 - s))
// T tokens, F columns.
#include "ops/swiglu.h"

#include <algorithm>

#include "ops/core/threads.h"
#include "ops/core/vector_math.h"
#include "ops/cuda_ops.h"

namespace pesc {
namespace {

void forward_row(const float* gate, const float* up, int64_t n, float* h) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) h[i] = silu(gate[i]) * up[i];
}

// dgate may alias gate, and dup up.
void backward_row(const float* dh, const float* gate, const float* up, int64_t n, float* dgate, float* dup) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float g = gate[i];
    const float u = up[i];
    const float d = dh[i];
    const float s = sigmoid(g);
    dgate[i] = d * u * s * std::fma(g, 1.0F - s, 1.0F);
    dup[i] = d * g * s;
  }
}

constexpr int64_t kFewest = 64;  // rows at a time; with fewer, LoRA's small GEMMs are slow

void check(const Tensor& gate_up, const Tensor& h) {
  PESC_CHECK(gate_up.dtype == DType::kF32 && h.dtype == DType::kF32, dtype_name(gate_up.dtype), ", ",
             dtype_name(h.dtype));
  PESC_CHECK(gate_up.rows == h.rows && gate_up.cols == 2 * h.cols, "gate and up ", gate_up.rows, "x",
             gate_up.cols, " for ", h.rows, "x", h.cols);
}

}  // namespace

void swiglu_forward(Stream& stream, const Tensor& gate_up, const Tensor& h, const DroppedCopy& dropped,
                    const Fp8Rows& codes) {
  if (stream.on_cuda()) return cuda_ops().swiglu_forward(stream, gate_up, h, dropped, codes);
  if (h.cols == 0) {  // the copy alone: made where it stands
    swiglu_forward(stream, gate_up, dropped.y, {}, codes);
    return dropout(stream, dropped.mask, dropped.y, dropped.y);
  }
  check(gate_up, h);
  parallel_for(stream, h.rows, row_grain(h.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* gate = gate_up.f32() + t * gate_up.ld;
      forward_row(gate, gate + h.cols, h.cols, h.f32() + t * h.ld);
    }
  });
  if (codes.present()) fp8_quantize_rows(stream, h, codes);
  if (dropped.y.present()) dropout(stream, dropped.mask, h, dropped.y);
}

void swiglu_backward(Stream& stream, const SwigluBackward& args, Arena& scratch) {
  if (stream.on_cuda()) return cuda_ops().swiglu_backward(stream, args, scratch);
  check(args.gate_up, args.dh);
  check(args.dgate_up, args.dh);
  const bool lora = args.lora.dout.present();
  // Tensors in use per row: gate and up, dh, h, and the gradient through LoRA's A.
  const int64_t most =
      lora ? rows_in_cache(stream, 5 * args.dh.cols * dtype_bytes(DType::kF32), kFewest) : args.dh.rows;
  for (int64_t begin = 0; begin < args.dh.rows; begin += most) {
    const int64_t end = begin + std::min(most, args.dh.rows - begin);
    const Tensor dh = args.dh.row_range(begin, end);
    const Tensor gate_up = args.gate_up.row_range(begin, end);
    if (lora) {
      Arena::Scope scope(scratch);
      const Tensor h = scratch.allocate(dh.rows, dh.cols);
      swiglu_forward(stream, gate_up, h);
      lora_down_backward(stream, args.lora.rows(begin, end), h, dh, scratch);
    }
    const Tensor dgate_up = args.dgate_up.row_range(begin, end);
    parallel_for(stream, dh.rows, row_grain(dh.cols), [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        const float* gate = gate_up.f32() + t * gate_up.ld;
        float* dgate = dgate_up.f32() + t * dgate_up.ld;
        backward_row(dh.f32() + t * dh.ld, gate, gate + dh.cols, dh.cols, dgate, dgate + dh.cols);
      }
    });
  }
  if (args.codes.present()) fp8_quantize_rows(stream, args.dgate_up, args.codes);
}

int64_t swiglu_scratch_bytes(const Device& device, int64_t tokens, int64_t columns, DType activations) {
  Arena arena = Arena::planning("swiglu scratch");
  (void)arena.allocate(tokens, columns, activations);
  if (device.kind == DeviceKind::kCuda) return arena.peak();
  return arena.peak() + lora_scratch_bytes(device, tokens, columns, activations);
}

}  // namespace pesc
