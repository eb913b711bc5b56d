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

struct SharedFfnForward {
  ConcatView x;       // [S, H] with gate_up.concat_columns() more columns
  Fp8Rows codes{};    // of x, from column_input_codes, or absent
  Tensor dropped;     // [S, H] = dropout(x), or x itself
  Tensor residual{};  // [S, H], or absent
  Tensor f;           // [S, H] = down(...) + residual written
};
// Uses ws.ffn_grad, ws.ffn_act, ws.gathered and ws.lora_*.
void shared_ffn_forward(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                        const LayerSaved& saved, const SharedFfnForward& args,
                        const OverlappedWork& overlapped_work = {});

struct SharedFfnBackward {
  Tensor df;          // [S, H]
  Tensor x, dropped;  // [S, H] as in the forward; x is read with trainable weights only
  ConcatView dx;      // [S, H] written; may alias df
  Tensor through_a;   // [S, H] written with the gradient through LoRA's A, before the mask
};
// Returns through_a, or a tensor without data when there is no LoRA. saved.gate_up is overwritten by its
// gradient. Uses the same workspace as the forward, and scratch.
Tensor shared_ffn_backward(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                           const LayerSaved& saved, const SharedFfnBackward& args);

// Bytes of scratch of the backward in blocks for `padded` tokens, besides those of swiglu_backward.
[[nodiscard]] int64_t ffn_blocks_scratch_bytes(const Device& device, const PescConfig& pesc, int64_t padded);

}  // namespace pesc
