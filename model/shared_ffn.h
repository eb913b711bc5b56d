// The dense SwiGLU FFN that all experts of a layer share: f = down(silu(gate(x)) * up(x)).
#pragma once

#include "model/parameters.h"
#include "model/pass.h"

namespace pesc {

// x [S, H] -> f [S, H] written.
void shared_ffn_forward(const Pass& pass, int64_t layer, const LayerParameters& p, const LayerSaved& saved,
                        const Tensor& x, const Tensor& f);
// df [S, H], x as in the forward -> dx [S, H] written; may be df itself. saved.gate_up is overwritten by its
// gradient.
void shared_ffn_backward(const Pass& pass, int64_t layer, const LayerParameters& p, const LayerSaved& saved,
                         const Tensor& df, const Tensor& x, const Tensor& dx);

}  // namespace pesc
