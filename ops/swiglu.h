// SwiGLU (Shazeer, 2020): h = silu(gate) * up, silu(z) = z / (1 + exp(-z)). T tokens, F columns.
// gate_up [T, 2F] holds gate in columns [0, F) and up in [F, 2F).
#pragma once

#include "ops/fp8.h"
#include "ops/lora.h"

namespace pesc {

// Writes h [T, F], dropped.y = dropout(h), and the codes of h. Each is optional. REQUIRES with codes, on the CPU: h
// or dropped.y.
void swiglu_forward(Stream& stream, const Tensor& gate_up, const Tensor& h, const DroppedCopy& dropped = {},
                    const Fp8Rows& codes = {});

// The backward. `lora` is the A projection of the down projection, whose input is h: its gradient is added to
// dh, and its da is added to.
struct SwigluBackward {
  Tensor dh;        // [T, F]; clobbered when `lora` is given
  Tensor gate_up;   // [T, 2F]
  Tensor dgate_up;  // [T, 2F] written; may alias gate_up
  LoraBranch lora{};
  Fp8Rows codes{};  // of dgate_up, optional; REQUIRES: column scales, if any, that are powers of two
};
void swiglu_backward(Stream& stream, const SwigluBackward& args, Arena& scratch);

// Bytes that swiglu_backward with `lora` may take from `scratch`. `columns` is F, `activations` the element
// type of h (F32 on the CPU).
[[nodiscard]] int64_t swiglu_scratch_bytes(const Device& device, int64_t tokens, int64_t columns,
                                           DType activations = DType::kF32);

}  // namespace pesc
