// The attention half of a decoder layer: x2 = x + o(attention(rope(qkv(norm(x))))).
#pragma once

#include "model/parameters.h"
#include "model/pass.h"

namespace pesc {

// cos and sin [max_positions, D/2] for the model's rope, in `arena`.
struct RopeTables {
  Tensor cos, sin;
  static RopeTables allocate(const ModelConfig& model, int64_t positions, Arena& arena);
  void fill(Stream& stream, const ModelConfig& model) const;
};
// Inverse frequencies [D/2] of the model's rope kind, radians per position.
[[nodiscard]] std::vector<double> rope_inverse_frequencies(const RopeConfig& rope, int64_t head_dim);

// Keys and values of earlier tokens, for decoding: `slots` sequences of up to `max_length` tokens.
struct KvCache {
  int64_t max_length = 0;
  std::vector<Tensor> k, v;  // per layer [slots * max_length, HK * D]
  static KvCache allocate(const ModelConfig& model, const Mesh& mesh, int64_t slots, int64_t max_length,
                          DType compute, Arena& arena);
};
// With a cache, segments carry kv_begin = slot * max_length and kv_len = tokens of the slot after this pass.

// saved.x -> saved.x2, and keeps what the backward needs. `cache` may be null.
void attention_block_forward(const Pass& pass, int64_t layer, const LayerParameters& p,
                             const RopeTables& rope, const LayerSaved& saved, const KvCache* cache);
// The attention's output, and lse and a_o beside it, again from saved.qkv and saved.a_o, bit for bit.
void attention_again(const Pass& pass, const LayerParameters& p, const LayerSaved& saved);
// dx [S, H] holds the gradient of x2 and becomes that of x.
void attention_block_backward(const Pass& pass, int64_t layer, const LayerParameters& p,
                              const RopeTables& rope, const LayerSaved& saved, const Tensor& dx);

}  // namespace pesc
