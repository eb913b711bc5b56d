// The shared FFN some hundred tokens at a time, between the gather of the tokens and the reduce-scatter of
// the sums. On a CPU a whole micro-batch's wide tensors leave the cache between one product and the next, and
// a small model's step waits for memory more than it computes. The mathematics and the messages are
// shared_ffn.cc's; only the sums over tokens of LoRA's gradients are made block by block.
#pragma once

#include "model/lora_linear.h"

namespace pesc {

// How many blocks `tokens` go in, as equal as they can be; 1 where the whole is as good: on a GPU, where a
// few tokens fill the cache, or where all fit. `columns` of the FFN on this rank.
[[nodiscard]] int64_t ffn_blocks(const Stream& stream, int64_t columns, int64_t hidden, int64_t tokens);
// The same of a pass; 1 with trained weights too, whose gradients want all tokens.
[[nodiscard]] int64_t ffn_blocks(const Pass& pass, const LayerParameters& p);

// As shared_ffn_forward. Uses the first rows of ws.wide and ws.wide2, ws.gathered and ws.lora_*.
void ffn_forward_in_blocks(const Pass& pass, int64_t layer, const LayerParameters& p, const LayerSaved& saved,
                           const Tensor& x, const Tensor& dropped, const Tensor& residual, const Tensor& f,
                           const Meanwhile& meanwhile);
// As shared_ffn_backward: dx may stand where df does. Uses the first rows of ws.wide, ws.gathered, ws.lora_*
// and scratch.
Tensor ffn_backward_in_blocks(const Pass& pass, int64_t layer, const LayerParameters& p,
                              const LayerSaved& saved, const Tensor& df, const Tensor& dropped,
                              const Tensor& dx, const Tensor& through_a);

// Scratch of the backward beside swiglu_backward's, for `padded` tokens.
[[nodiscard]] int64_t ffn_blocks_scratch_bytes(const Device& device, const PescConfig& pesc, int64_t padded);

}  // namespace pesc
