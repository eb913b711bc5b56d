// The dense SwiGLU FFN that all experts of a layer share: f = down(silu(gate(x)) * up(x)).
#pragma once

#include "model/lora_linear.h"

namespace pesc {

// What the FFN keeps, of some rows of the slice.
[[nodiscard]] LayerSaved ffn_rows(const LayerSaved& saved, const BatchChunk& chunk);

// x [S, H], dropped and residual as in lora_linear.h -> f [S, H] = down(...) + residual written.
void shared_ffn_forward(const Pass& pass, int64_t layer, const LayerParameters& p, const LayerSaved& saved,
                        const Beside& x, const Tensor& dropped, const Tensor& residual, const Tensor& f,
                        const Meanwhile& meanwhile = {});
// df [S, H], x [S, H] (with trained weights alone) and dropped as in the forward -> dx [S, H] written, which
// may stand where df does, and what comes through LoRA's A as column_backward returns it. saved.gate_up is
// overwritten by its gradient.
Tensor shared_ffn_backward(const Pass& pass, int64_t layer, const LayerParameters& p, const LayerSaved& saved,
                           const Tensor& df, const Tensor& x, const Tensor& dropped, const Beside& dx,
                           const Tensor& through_a);

}  // namespace pesc
