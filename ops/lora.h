// The first half of LoRA (Hu et al., 2021): a = scale * dropout(x) A^T, A [r, in], scale = alpha / rank; the
// second half is y += a B^T, a plain product. Several linears that read the same input stack their A's by
// rows. T tokens, I input columns, R stacked rank.
#pragma once

#include "ops/core/arena.h"
#include "ops/dropout.h"

namespace pesc {

struct LoraDownForward {
  Tensor x;  // [T, I], any row stride
  Dropout dropout;
  Tensor a;  // [R, I] weights
  float scale = 1;
  Tensor out;  // [T, R] written, any row stride
};
void lora_down_forward(Stream& stream, const LoraDownForward& args, Arena& scratch);

// Given dout, the gradient of `out`: da += scale * dout^T dropout(x);  dx += mask * scale * dout A.
struct LoraDownBackward {
  Tensor dout;  // [T, R], any row stride
  Tensor x;     // [T, I]
  Dropout dropout;
  Tensor a;  // [R, I]
  float scale = 1;
  Tensor da;  // [R, I], added to
  Tensor dx;  // [T, I], added to; absent when not needed
};
void lora_down_backward(Stream& stream, const LoraDownBackward& args, Arena& scratch);

// Scratch bytes of either call; `activations` is the element type of x (F32 on the CPU).
[[nodiscard]] int64_t lora_scratch_bytes(const Device& device, int64_t tokens, int64_t columns,
                                         DType activations = DType::kF32);

}  // namespace pesc
