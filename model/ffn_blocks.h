// The shared FFN some hundred tokens at a time, between the gather of the tokens and the reduce-scatter of
// the sums. On a CPU a whole micro-batch's wide tensors leave the cache between one product and the next, and
// a small model's step waits for memory more than it computes. The mathematics and the messages are
// shared_ffn.cc's; only the sums over tokens of LoRA's gradients are made block by block.
#pragma once

#include "model/lora_linear.h"

namespace pesc {

// Tokens of a block; 0 where the whole is as good: on a GPU, where a few tokens fill the cache, or where they
// all fit; and with trained weights, whose gradients want all tokens.
[[nodiscard]] int64_t ffn_block_rows(const Pass& pass, const LayerParameters& p);

// As shared_ffn_forward. Uses the first rows of ws.wide and ws.wide2, ws.gathered and ws.lora_*.
void ffn_forward_in_blocks(const Pass& pass, int64_t layer, const LayerParameters& p, const LayerSaved& saved,
                           const Tensor& x, const Tensor& dropped, const Tensor& residual, const Tensor& f,
                           const Meanwhile& meanwhile);
// As shared_ffn_backward.
Tensor ffn_backward_in_blocks(const Pass& pass, int64_t layer, const LayerParameters& p,
                              const LayerSaved& saved, const Tensor& df, const Tensor& dropped,
                              const Tensor& dx, const Tensor& through_a);

// Scratch of the backward beside swiglu_backward's, for `padded` tokens and `lora` stacked columns.
[[nodiscard]] int64_t ffn_blocks_scratch_bytes(const Device& device, int64_t padded, int64_t lora);

}  // namespace pesc
