// The attention half of a decoder layer: x2 = x + o(attention(rope(qkv(norm(x))))). Some families norm the heads
// of q and k before RoPE, and in some not every layer rotates (model/families.h).
#pragma once

#include "model/forward_context.h"
#include "model/parameters.h"

namespace pesc {

// The tables cos and sin [positions, D/2] of the model's rotary embedding.
struct RopeTables {
  Tensor cos, sin;
  static RopeTables allocate(const ModelConfig& model, int64_t positions, Arena& arena);
  void fill(Stream& stream, const ModelConfig& model) const;
};
// Inverse frequencies [D/2] of the model's rope kind, radians per position.
[[nodiscard]] std::vector<double> rope_inverse_frequencies(const RopeConfig& rope, int64_t head_dim);

// The keys and values of earlier tokens, for decoding: `slots` sequences of up to `max_length` tokens. The
// segments of a pass then have kv_begin = slot * max_length and kv_len = the tokens in the slot after this
// pass.
struct KvCache {
  int64_t max_length = 0;
  std::vector<Tensor> k, v;  // per layer [slots * max_length, HK * D]
  static KvCache allocate(const ModelConfig& model, const Mesh& mesh, int64_t slots, int64_t max_length,
                          DType compute, Arena& arena);
};

// Reads saved.x, writes saved.x2 and what the backward needs of `saved`. `cache` may be null.
void attention_block_forward(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                             const RopeTables& rope, const LayerSaved& saved, const KvCache* cache);
// Recomputes saved.attention (with a_o concatenated to it) and saved.lse from saved.qkv and saved.a_o, bit
// for bit.
void recompute_attention(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                         const RopeTables& rope, const LayerSaved& saved);
// dx [S, H] holds the gradient of x2 and is overwritten by the gradient of x.
void attention_block_backward(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                              const RopeTables& rope, const LayerSaved& saved, const Tensor& dx);

}  // namespace pesc
