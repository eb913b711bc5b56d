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

int64_t output_rows(const ModelConfig& m, Linear linear) {
  switch (linear) {
    case Linear::kQ:
      return m.num_attention_heads * m.head_dim;
    case Linear::kK:
    case Linear::kV:
      return m.num_key_value_heads * m.head_dim;
    case Linear::kGate:
    case Linear::kUp:
      return m.intermediate_size;
    case Linear::kO:
    case Linear::kDown:
      return m.hidden_size;
  }
  throw InternalError("output_rows: no such linear");
}

bool QuantizedBase::holds(int64_t layer, Linear linear) const {
  return !std::binary_search(plain.begin(), plain.end(), layer * kLinears + static_cast<int64_t>(linear));
}

bool ModelConfig::rotates(int64_t layer) const {
  return !std::binary_search(layers_without_rope.begin(), layers_without_rope.end(), layer);
}

std::vector<int64_t> every_nth_layer(int64_t layers, int64_t interval) {
  std::vector<int64_t> out;
  for (int64_t layer = interval - 1; layer < layers; layer += interval) out.push_back(layer);
  return out;
}

bool LoraConfig::on(Linear linear) const {
  return r > 0 && std::find(target_modules.begin(), target_modules.end(), linear) != target_modules.end();
}

void validate_model(const ModelConfig& m) {
  require_positive(m.vocab_size, "vocab_size");
  require_positive(m.hidden_size, "hidden_size");
  require_positive(m.intermediate_size, "intermediate_size");
  require_positive(m.num_hidden_layers, "num_hidden_layers");
  require_positive(m.num_attention_heads, "num_attention_heads");
  require_positive(m.num_key_value_heads, "num_key_value_heads");
  require_positive(m.head_dim, "head_dim");
  require_positive(m.max_position_embeddings, "max_position_embeddings");
  if (m.num_attention_heads % m.num_key_value_heads != 0) {
    throw DataError(str_cat("model config: num_attention_heads (", m.num_attention_heads,
                            ") is not a multiple of num_key_value_heads (", m.num_key_value_heads, ")"));
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
  if (m.num_attention_heads % tp != 0) {
    throw UsageError(str_cat("impossible layout: the model's ", m.num_attention_heads,
                             " attention heads are not divisible by parallel.tp = ", tp,
                             "; choose a tp that divides them"));
  }
  if (m.intermediate_size % tp != 0) {
    throw UsageError(str_cat("impossible layout: the model's FFN of ", m.intermediate_size,
                             " columns is not divisible by parallel.tp = ", tp,
                             "; choose a tp that divides it"));
  }
  if (m.num_key_value_heads % tp != 0 && tp % m.num_key_value_heads != 0) {
    throw UsageError(str_cat("impossible layout: of the model's ", m.num_key_value_heads,
                             " KV heads and parallel.tp = ", tp,
                             " one must divide the other; choose another tp"));
  }
  if (pesc.mode == TrainMode::kPesc) {
    const MoeConfig& moe = pesc.moe;
    if (moe.num_experts % ep != 0) {
      throw UsageError(str_cat("impossible layout: moe.num_experts = ", moe.num_experts,
                               " is not divisible by parallel.ep = ", ep, "; choose an ep that divides it"));
    }
    if (moe.num_experts_per_tok < 1 || moe.num_experts_per_tok > moe.num_experts) {
      throw UsageError(str_cat("moe.num_experts_per_tok is ", moe.num_experts_per_tok,
                               "; it must be between 1 and moe.num_experts = ", moe.num_experts));
    }
    if (moe.adapter_dim < 1)
      throw UsageError(str_cat("moe.adapter_dim is ", moe.adapter_dim, "; it must be positive"));
  } else if (ep != 1) {
    throw UsageError(str_cat("impossible layout: parallel.ep is ", ep,
                             ", but there are experts only in train.mode PESC; set parallel.ep to 1"));
  }
}

}  // namespace pesc
