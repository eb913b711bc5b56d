#include "model/flops.h"

namespace pesc {
namespace {

// Weights of the linears of a layer.
double linear_weights(const ModelConfig& m) {
  const double q = static_cast<double>(m.num_attention_heads * m.head_dim);
  const double kv = static_cast<double>(m.num_key_value_heads * m.head_dim);
  return static_cast<double>(m.hidden_size) * (2 * q + 2 * kv + 3 * static_cast<double>(m.intermediate_size));
}

}  // namespace

double frozen_linear_flops(const ModelConfig& m, const PescConfig& pesc, double tokens) {
  if (pesc.mode == TrainMode::kFull) return 0;
  return static_cast<double>(m.num_hidden_layers) * 4 * linear_weights(m) * tokens;
}

double training_flops(const ModelConfig& m, const PescConfig& pesc, const StepTokens& step) {
  const double h = static_cast<double>(m.hidden_size);
  const double q = static_cast<double>(m.num_attention_heads * m.head_dim);
  const double kv = static_cast<double>(m.num_key_value_heads * m.head_dim);
  const double f = static_cast<double>(m.intermediate_size);
  const bool full = pesc.mode == TrainMode::kFull;
  double per_token = (full ? 6 : 4) * linear_weights(m);
  if (!full && pesc.lora.r > 0) {
    const double in[kLinears] = {h, h, h, q, h, h, f};
    const double out[kLinears] = {q, kv, kv, h, f, f, h};
    for (const Linear l : pesc.lora.target_modules) {
      const auto i = static_cast<size_t>(l);
      per_token += 6 * static_cast<double>(pesc.lora.r) * (in[i] + out[i]);
    }
  }
  if (pesc.mode == TrainMode::kPesc) {
    const double k = static_cast<double>(pesc.moe.num_experts_per_tok);
    per_token += 6 * h * static_cast<double>(pesc.moe.num_experts);
    per_token += 6 * k * 2 * h * static_cast<double>(pesc.moe.adapter_dim);
  }
  const double attention = 3.5 * 4 * q / 2 * step.squared_lengths;
  const double head = (full ? 6 : 4) * h * static_cast<double>(m.vocab_size) * step.supervised;
  return static_cast<double>(m.num_hidden_layers) * (per_token * step.tokens + attention) + head;
}

}  // namespace pesc
