// SwiGLU (Shazeer, 2020): h = silu(gate) * up, silu(z) = z / (1 + exp(-z)). T tokens, F columns.
// gate_up [T, 2F] holds gate in columns [0, F) and up in [F, 2F).
#pragma once

#include "ops/lora.h"

namespace pesc {

// h [T, F] written, and its dropped copy; either may be absent.
void swiglu_forward(Stream& stream, const Tensor& gate_up, const Tensor& h, const DroppedCopy& dropped = {});

// The gradient of h is dh and what comes through the LoRA path of the down projection, whose input is h.
struct SwigluBackward {
  Tensor dh;        // [T, F]; used up where there is a LoRA path
  Tensor gate_up;   // [T, 2F]
  Tensor dgate_up;  // [T, 2F] written; may alias gate_up
  LoraBranch lora{};
};
void swiglu_backward(Stream& stream, const SwigluBackward& args, Arena& scratch);

// `columns` = F, with a LoRA path; `activations` is the element type of h.
[[nodiscard]] int64_t swiglu_scratch_bytes(const Device& device, int64_t tokens, int64_t columns,
                                           DType activations = DType::kF32);

}  // namespace pesc
