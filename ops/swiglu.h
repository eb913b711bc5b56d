// SwiGLU (Shazeer, 2020): h = silu(gate) * up, silu(z) = z / (1 + exp(-z)). T tokens, F columns.
// gate_up [T, 2F] holds gate in columns [0, F) and up in [F, 2F).
#pragma once

#include "ops/core/device.h"

namespace pesc {

void swiglu_forward(Stream& stream, const Tensor& gate_up, const Tensor& h);  // h [T, F] written

// dgate_up [T, 2F] written; may alias gate_up.
void swiglu_backward(Stream& stream, const Tensor& dh, const Tensor& gate_up, const Tensor& dgate_up);

}  // namespace pesc
