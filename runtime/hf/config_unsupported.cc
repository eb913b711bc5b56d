// Keys of config.json that change the mathematics and that no operation here computes. transformers ignores
// most of them in these families; files that carry them were written for models with code of their own, or
// had their model_type changed, and would give wrong numbers without a word.
#include <array>
#include <cmath>
#include <string_view>

#include "ops/core/check.h"
#include "runtime/hf/config_parts.h"
#include "runtime/hf/safetensors.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

struct Neutral {
  const char* key;
  double value;  // that changes nothing; false is 0 and true is 1, and a list must hold nothing else
  const char* what;
};

constexpr auto kBias = "biases that the family does not have";
constexpr auto kNorm = "norms that the family does not have";
constexpr auto kCap = "capped logits";
constexpr auto kScale = "a scaled model";
constexpr auto kPosition = "another use of positions";
constexpr auto kMask = "another attention mask";
constexpr auto kExperts = "a mixture of experts as base";
constexpr auto kBlocks = "blocks of another shape";
constexpr std::array<Neutral, 61> kNeutral = {{
    {"mlp_bias", 0, kBias},
    {"use_bias", 0, kBias},
    {"add_bias_linear", 0, kBias},
    {"attention_out_bias", 0, kBias},
    {"lm_head_bias", 0, kBias},
    {"qk_norm", 0, kNorm},
    {"use_qk_norm", 0, kNorm},
    {"qk_layernorm", 0, kNorm},
    {"sandwich_norm", 0, kNorm},
    {"use_post_norm", 0, kNorm},
    {"normalize_embedding", 0, kNorm},
    {"final_logit_softcapping", 0, kCap},
    {"attn_logit_softcapping", 0, kCap},
    {"logits_soft_cap", 0, kCap},
    {"attn_logit_softcap", 0, kCap},
    {"final_logit_softcap", 0, kCap},
    {"router_logit_softcapping", 0, kCap},
    {"clip_qkv", 0, kCap},
    {"logits_scaling", 1, kScale},
    {"logit_scale", 1, kScale},
    {"lm_head_multiplier", 1, kScale},
    {"embedding_multiplier", 1, kScale},
    {"embedding_scale", 1, kScale},
    {"scale_emb", 1, kScale},
    {"scale_embedding", 0, kScale},
    {"residual_multiplier", 1, kScale},
    {"key_multiplier", 1, kScale},
    {"attention_in_multiplier", 1, kScale},
    {"attention_out_multiplier", 1, kScale},
    {"mlp_multipliers", 1, kScale},
    {"use_mup", 0, kScale},
    {"scale_attn_weights", 1, kScale},
    {"scale_attn_by_inverse_layer_idx", 0, kScale},
    {"attn_temperature_tuning", 0, kScale},
    {"use_logn_attn", 0, kScale},
    {"use_rope", 1, kPosition},
    {"no_rope_layers", 1, kPosition},
    {"no_rope_layer_interval", 0, kPosition},
    {"rope_interleave", 0, kPosition},
    {"rope_interleaved", 0, kPosition},
    {"rotary_interleaved", 0, kPosition},
    {"rotary_pct", 1, kPosition},
    {"rope_ratio", 1, kPosition},
    {"use_dynamic_ntk", 0, kPosition},
    {"use_mrope", 0, kPosition},
    {"alibi", 0, kPosition},
    {"use_alibi", 0, kPosition},
    {"is_causal", 1, kMask},
    {"use_bidirectional_attention", 0, kMask},
    {"attention_chunk_size", 0, kMask},
    {"num_experts", 0, kExperts},
    {"num_local_experts", 0, kExperts},
    {"n_routed_experts", 0, kExperts},
    {"moe_num_experts", 0, kExperts},
    {"kv_lora_rank", 0, kBlocks},
    {"q_lora_rank", 0, kBlocks},
    {"num_kv_shared_layers", 0, kBlocks},
    {"use_parallel_residual", 0, kBlocks},
    {"parallel_attn", 0, kBlocks},
    {"is_encoder_decoder", 0, kBlocks},
    {"add_cross_attention", 0, kBlocks},
}};

bool is_neutral(const nlohmann::json& value, double neutral) {
  if (value.is_boolean()) return (value.get<bool>() ? 1.0 : 0.0) == neutral;
  if (value.is_number()) return std::abs(value.get<double>() - neutral) <= 1e-6 * std::abs(neutral);
  if (!value.is_array()) return false;
  for (const nlohmann::json& item : value)
    if (item.is_array() || !is_neutral(item, neutral)) return false;
  return true;
}

void refuse(const ConfigFields& fields, const Neutral& n) {
  const nlohmann::json* value = fields.find(n.key);
  if (value == nullptr || is_neutral(*value, n.value)) return;
  const std::string only = value->is_boolean() ? (n.value == 0 ? "false" : "true") : str_cat(n.value);
  fields.fail(n.key, str_cat(shown(*value), " means ", n.what, ", which is not supported; only ", only,
                             " is, or no such key"));
}

void refuse_activations(const ConfigFields& fields) {
  for (const char* key : {"hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act"}) {
    const std::string act = fields.string(key).value_or("silu");
    if (act == "silu" || act == "swish") continue;  // two names of one function
    fields.fail(key, str_cat("the activation ", in_quotes(act), " is not supported; only silu is"));
  }
}

// Shares of activations, attention weights or whole layers that transformers drops while it trains. Those of
// heads that no causal language model has are left alone.
void refuse_dropout(const ConfigFields& fields) {
  for (const auto& [key, value] : fields.object_items()) {
    const std::string_view name = key;
    const bool drops = name == "dropout" || name.ends_with("_dropout") || name.ends_with("_dropout_prob") ||
                       name.ends_with("_dropout_p") || name.ends_with("_dropout_rate") ||
                       name.ends_with("_pdrop") || name.ends_with("layerdrop");
    const bool of_another_head = name.starts_with("classifier_") || name.starts_with("summary_");
    if (!drops || of_another_head || value.is_null() || is_neutral(value, 0)) continue;
    fields.fail(key.c_str(),
                str_cat(shown(value),
                        " means that training drops a part of what the base model computes, which is "
                        "not supported; only 0 is, or no such key (lora.dropout and moe.dropout are "
                        "those of what is trained)"));
  }
}

// rms_norm_eps under another family's name: the default would be taken in its place.
void refuse_other_epsilons(const ConfigFields& fields) {
  if (fields.has("rms_norm_eps")) return;
  for (const char* key :
       {"norm_eps", "norm_epsilon", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon"}) {
    if (fields.has(key)) fields.fail(key, "is not what these families call it; say rms_norm_eps");
  }
}

}  // namespace

void refuse_unsupported(const ConfigFields& fields, const ModelConfig& model) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (fields.has(key))
      fields.fail(key, "quantised checkpoints are not supported; give the unquantised model");
  }
  refuse_activations(fields);
  refuse_other_epsilons(fields);
  refuse_dropout(fields);
  const bool attention_bias = fields.boolean("attention_bias").value_or(false);
  const bool qkv_bias = fields.boolean("qkv_bias").value_or(model.family == Family::kQwen2);
  // Qwen2 has biases on q, k and v whatever its file says; one on o is found among the weights.
  if (attention_bias && model.family != Family::kQwen2) {
    fields.fail("attention_bias",
                str_cat("a model of type ", model.family == Family::kLlama ? "llama" : "mistral",
                        " with biases on q, k, v and o is not supported; only false is"));
  }
  if (qkv_bias != (model.family == Family::kQwen2)) {
    fields.fail("qkv_bias",
                "contradicts the model type: qwen2 has biases on q, k and v, llama and mistral have none");
  }
  (void)fields.boolean("mlp_bias");
  for (const Neutral& n : kNeutral) refuse(fields, n);
  // Those whose neutral value depends on the model's sizes.
  const auto head = static_cast<double>(model.head_dim);
  for (const Neutral& n : std::array<Neutral, 9>{{
           {"attention_multiplier", 1 / std::sqrt(head), "attention scores that are scaled by it"},
           {"query_pre_attn_scalar", head, "attention scores that are scaled by it"},
           {"rotary_dim", head, "a partly rotated head"},
           {"qk_rope_head_dim", head, "a partly rotated head"},
           {"v_head_dim", head, kBlocks},
           {"qk_head_dim", head, kBlocks},
           {"kv_channels", head, kBlocks},
           {"dim_model_base", static_cast<double>(model.hidden), kScale},
           {"scale_depth", std::sqrt(static_cast<double>(model.layers)), kScale},
       }}) {
    refuse(fields, n);
  }
}

}  // namespace pesc
