#include "model/config.h"

#include <algorithm>

#include "ops/core/check.h"

namespace pesc {
namespace {

void require_positive(int64_t value, const char* field) {
  if (value <= 0 || value > (int64_t{1} << 31)) {
    throw DataError(str_cat("model config: ", field, " is ", value, "; it must be between 1 and 2^31"));
  }
}

}  // namespace

const char* linear_name(Linear linear) {
  switch (linear) {
    case Linear::kQ:
      return "q_proj";
    case Linear::kK:
      return "k_proj";
    case Linear::kV:
      return "v_proj";
    case Linear::kO:
      return "o_proj";
    case Linear::kGate:
      return "gate_proj";
    case Linear::kUp:
      return "up_proj";
    case Linear::kDown:
      return "down_proj";
  }
  throw InternalError("linear_name: no such linear");
}

bool LoraConfig::on(Linear linear) const {
  return rank > 0 && std::find(targets.begin(), targets.end(), linear) != targets.end();
}

void validate_model(const ModelConfig& m) {
  require_positive(m.vocab, "vocab_size");
  require_positive(m.hidden, "hidden_size");
  require_positive(m.ffn, "intermediate_size");
  require_positive(m.layers, "num_hidden_layers");
  require_positive(m.heads, "num_attention_heads");
  require_positive(m.kv_heads, "num_key_value_heads");
  require_positive(m.head_dim, "head_dim");
  require_positive(m.max_positions, "max_position_embeddings");
  if (m.heads % m.kv_heads != 0) {
    throw DataError(str_cat("model config: num_attention_heads (", m.heads,
                            ") is not a multiple of num_key_value_heads (", m.kv_heads, ")"));
  }
  if (m.head_dim % 2 != 0) {
    throw DataError(
        str_cat("model config: head_dim is ", m.head_dim, "; rotary embedding needs an even one"));
  }
}

void validate_layout(const ModelConfig& m, const PescConfig& pesc, int world, int tp, int ep) {
  if (world < 1 || tp < 1 || ep < 1) {
    throw UsageError(str_cat("impossible layout: world ", world, ", parallel.tp ", tp, ", parallel.ep ", ep,
                             "; each must be at least 1"));
  }
  if (world % tp != 0) {
    throw UsageError(str_cat("impossible layout: parallel.tp is ", tp, ", which does not divide the ", world,
                             " ranks; start a multiple of ", tp, " ranks or change parallel.tp"));
  }
  if (world % ep != 0) {
    throw UsageError(str_cat("impossible layout: parallel.ep is ", ep, ", which does not divide the ", world,
                             " ranks; start a multiple of ", ep, " ranks or change parallel.ep"));
  }
  if (m.heads % tp != 0) {
    throw UsageError(str_cat("impossible layout: the model's ", m.heads,
                             " attention heads are not divisible by parallel.tp = ", tp));
  }
  if (m.ffn % tp != 0) {
    throw UsageError(str_cat("impossible layout: the model's FFN of ", m.ffn,
                             " columns is not divisible by parallel.tp = ", tp));
  }
  if (m.kv_heads % tp != 0 && tp % m.kv_heads != 0) {
    throw UsageError(str_cat("impossible layout: of the model's ", m.kv_heads,
                             " KV heads and parallel.tp = ", tp, " one must divide the other"));
  }
  if (pesc.mode == TrainMode::kPesc) {
    const MoeConfig& moe = pesc.moe;
    if (moe.experts % ep != 0) {
      throw UsageError(str_cat("impossible layout: moe.experts = ", moe.experts,
                               " is not divisible by parallel.ep = ", ep));
    }
    if (moe.top_k < 1 || moe.top_k > moe.experts) {
      throw UsageError(
          str_cat("moe.top_k is ", moe.top_k, "; it must be between 1 and moe.experts = ", moe.experts));
    }
    if (moe.adapter_dim < 1)
      throw UsageError(str_cat("moe.adapter_dim is ", moe.adapter_dim, "; it must be positive"));
  } else if (ep != 1) {
    throw UsageError(str_cat("impossible layout: parallel.ep is ", ep,
                             ", but there are experts only in train.mode PESC; set parallel.ep to 1"));
  }
}

}  // namespace pesc
