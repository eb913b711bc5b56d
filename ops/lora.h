// The first half of LoRA (Hu et al., 2021): a = scale * dropout(x) A^T, A [r, in], scale = alpha / rank; the
// second half is y += a B^T, a plain product. Several linears that read the same input stack their A's by
// rows. T tokens, I input columns, R stacked rank.
//
// The operation that makes x makes dropout(x) as well, and its backward takes what comes back along; where x
// simply stands in memory, lora_down_backward does.
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

// The way back, given dout, the gradient of `out`: da += scale * dout^T dropout(x), and into the gradient of
// x goes mask * scale * dout A. Absent: dout is.
struct LoraBranch {
  Tensor dout;  // [T, R], any row stride
  Tensor a;     // [R, I]
  float scale = 1;
  Dropout dropout;
  Tensor da;  // [R, I] F32, added to

  // The way back of some of the tokens.
  [[nodiscard]] LoraBranch rows(int64_t begin, int64_t end) const {
    return {dout.row_range(begin, end), a, scale, dropout.rate > 0 ? dropout.rows(begin, end) : dropout, da};
  }
};
// The two products of it: da += scale dout^T dropped, dropped = dropout(x) [T, I]; and the gradient of
// dropout(x), [T, I] written.
void lora_weight_gradient(Stream& stream, const LoraBranch& branch, const Tensor& dropped);
void lora_input_gradient(Stream& stream, const LoraBranch& branch, const Tensor& ddropped);
// Both for an x [T, I] that stands in memory: dx [T, I] is added to.
void lora_down_backward(Stream& stream, const LoraBranch& branch, const Tensor& x, const Tensor& dx,
                        Arena& scratch);

// Scratch bytes of lora_down_backward; `activations` is the element type of x (F32 on the CPU).
[[nodiscard]] int64_t lora_scratch_bytes(const Device& device, int64_t tokens, int64_t columns,
                                         DType activations = DType::kF32);

}  // namespace pesc
