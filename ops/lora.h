// The A projection of LoRA (Hu et al., 2021): a = scale * dropout(x) A^T with A [r, in] and scale = alpha /
// rank. The B projection, y += a B^T, is a plain GEMM. Linears that read the same input stack their A
// matrices by rows. T tokens, I input columns, R stacked rank.
//
// The op that produces x also produces dropout(x), and its backward accumulates the gradient through A (a
// LoraBranch). Where x is a plain tensor, lora_down_backward does both.
#pragma once

#include "ops/core/arena.h"
#include "ops/dropout.h"

namespace pesc {

struct LoraDownForward {
  Tensor dropped;  // [T, I] dropout(x), any row stride
  Tensor a;        // [R, I] weights
  float scale = 1;
  Tensor out;  // [T, R] written, any row stride
};
void lora_down_forward(Stream& stream, const LoraDownForward& args);

// The backward of the A projection, given dout, the gradient of `out`:
//   da += scale dout^T dropout(x);  dx += mask * scale dout A
// Optional as a field of other ops: unused when `dout` has no data.
struct LoraBranch {
  Tensor dout;  // [T, R], any row stride
  Tensor a;     // [R, I]
  float scale = 1;
  Dropout dropout;
  Tensor da;  // [R, I] F32, added to

  // The branch for tokens [begin, end).
  [[nodiscard]] LoraBranch rows(int64_t begin, int64_t end) const {
    return {dout.row_range(begin, end), a, scale, dropout.rate > 0 ? dropout.rows(begin, end) : dropout, da};
  }
};
// The two GEMMs of the backward: da += scale dout^T dropped, where dropped [T, I] = dropout(x); and ddropped
// [T, I] = scale dout A, written: the gradient before the mask.
void lora_weight_gradient(Stream& stream, const LoraBranch& branch, const Tensor& dropped);
void lora_input_gradient(Stream& stream, const LoraBranch& branch, const Tensor& ddropped);
// Both GEMMs and the mask, for a plain tensor x [T, I]: dx [T, I] is added to.
void lora_down_backward(Stream& stream, const LoraBranch& branch, const Tensor& x, const Tensor& dx,
                        Arena& scratch);

// Bytes that lora_down_backward may take from `scratch`. `activations` is the element type of x (F32 on the
// CPU).
[[nodiscard]] int64_t lora_scratch_bytes(const Device& device, int64_t tokens, int64_t columns,
                                         DType activations = DType::kF32);

}  // namespace pesc
