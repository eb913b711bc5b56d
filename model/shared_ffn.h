// The dense SwiGLU FFN that all experts of a layer share: f = down(silu(gate(x)) * up(x)).
//
// Between the gather of the tokens and the reduce-scatter of the sums it goes over the tokens block by block.
// On a GPU all tokens are one block. On a CPU a whole micro-batch's wide tensors leave the cache between one
// product and the next, and a small model's step waits for memory more than it computes: there a block is
// some hundred tokens. Only the sums over tokens of LoRA's gradients depend on the blocks.
#pragma once

#include "model/lora_linear.h"

namespace pesc {

// How many blocks `tokens` go in, as equal as they can be; 1 where the whole is as good: on a GPU, where a
// few tokens fill the cache, or where all fit. `columns` of the FFN on this rank.
[[nodiscard]] int64_t ffn_blocks(const Stream& stream, int64_t columns, int64_t hidden, int64_t tokens);
// The same of a pass; 1 with trained weights too, whose gradients want all tokens.
[[nodiscard]] int64_t ffn_blocks(const Pass& pass, const LayerParameters& p);

// What the FFN keeps, of some rows of the slice.
[[nodiscard]] LayerSaved ffn_rows(const LayerSaved& saved, const BatchChunk& chunk);

// x [S, H], dropped and residual as in lora_linear.h -> f [S, H] = down(...) + residual written. Uses
// ws.wide, ws.wide2, ws.gathered and ws.lora_*.
void shared_ffn_forward(const Pass& pass, int64_t layer, const LayerParameters& p, const LayerSaved& saved,
                        const Beside& x, const Tensor& dropped, const Tensor& residual, const Tensor& f,
                        const Meanwhile& meanwhile = {});
// df [S, H], x [S, H] (with trained weights alone) and dropped as in the forward -> dx [S, H] written, which
// may stand where df does, and what comes through LoRA's A as column_backward returns it. saved.gate_up is
// overwritten by its gradient. Uses what the forward uses, and scratch.
Tensor shared_ffn_backward(const Pass& pass, int64_t layer, const LayerParameters& p, const LayerSaved& saved,
                           const Tensor& df, const Tensor& x, const Tensor& dropped, const Beside& dx,
                           const Tensor& through_a);

// Scratch of the backward in blocks beside swiglu_backward's, for `padded` tokens.
[[nodiscard]] int64_t ffn_blocks_scratch_bytes(const Device& device, const PescConfig& pesc, int64_t padded);

}  // namespace pesc
