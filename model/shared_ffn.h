// The dense SwiGLU FFN that all experts of a layer share: f = down(silu(gate(x)) * up(x)).
//
// Between the all-gather of the tokens and the reduce-scatter of the sums it processes the tokens in blocks.
// On a GPU all tokens are one block. On a CPU a block has some hundred tokens, so that its tensors stay in
// the cache from one GEMM to the next. Only LoRA's gradients, which are sums over tokens, depend on the
// blocks in their rounding.
#pragma once

#include "model/lora_linear.h"

namespace pesc {

// The number of blocks of nearly equal size for `tokens` tokens; 1 where blocks gain nothing: on a GPU, where
// a few tokens fill the cache already, and where all tokens fit it. `columns`: FFN columns on this rank.
[[nodiscard]] int64_t ffn_blocks(const Stream& stream, int64_t columns, int64_t hidden, int64_t tokens);
// The same for a pass; also 1 with trainable weights, whose gradients need all tokens.
[[nodiscard]] int64_t ffn_blocks(const ForwardContext& ctx, const LayerParameters& p);

// The FFN's saved tensors for the rows of one chunk.
[[nodiscard]] LayerSaved ffn_rows(const LayerSaved& saved, const BatchChunk& chunk);

// x [S, H], dropped and residual as in lora_linear.h -> f [S, H] = down(...) + residual written. Uses
// ws.ffn_grad, ws.ffn_act, ws.gathered and ws.lora_*.
void shared_ffn_forward(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                        const LayerSaved& saved, const ConcatView& x, const Tensor& dropped,
                        const Tensor& residual, const Tensor& f, const OverlappedWork& overlapped_work = {});
// df [S, H]; x [S, H] (read with trainable weights only) and dropped as in the forward -> dx [S, H] written,
// which may alias df. Returns the gradient through LoRA's A as column_backward does. saved.gate_up is
// overwritten by its gradient. Uses the same workspace as the forward, and scratch.
Tensor shared_ffn_backward(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                           const LayerSaved& saved, const Tensor& df, const Tensor& x, const Tensor& dropped,
                           const ConcatView& dx, const Tensor& through_a);

// Bytes of scratch of the backward in blocks for `padded` tokens, besides those of swiglu_backward.
[[nodiscard]] int64_t ffn_blocks_scratch_bytes(const Device& device, const PescConfig& pesc, int64_t padded);

}  // namespace pesc
