// Keys of config.json that change the mathematics: each must say what the family's row has. transformers
// ignores most of them in these families; files that carry them were written for models with code of their
// own, or had their model_type changed, and would give wrong numbers without a word.
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "model/families.h"
#include "ops/core/check.h"
#include "runtime/hf/config_parts.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

// What a key that is not neutral asks for.
struct Form {
  const char* what;
  // Those keys that the family reads itself; null where no family here has this form.
  ConfigKeys (*keys)(const FamilyTraits&) = nullptr;
};

constexpr Form kBias = {"biases on other linears than q, k and v"};
constexpr Form kNorm = {"norms in other places",
                        [](const FamilyTraits& t) { return keys_of(t.norm_places); }};
constexpr Form kCap = {"capped scores or logits", [](const FamilyTraits& t) { return keys_of(t.soft_caps); }};
constexpr Form kScale = {"a scaled model", [](const FamilyTraits& t) { return keys_of(t.multipliers); }};
constexpr Form kRopeLayers = {"layers without rotary embedding",
                              [](const FamilyTraits& t) { return keys_of(t.rope_layers); }};
constexpr Form kPosition = {"another use of positions"};
constexpr Form kPartly = {"a partly rotated head"};
constexpr Form kMask = {"another attention mask"};
constexpr Form kClip = {"clipped q, k and v"};
constexpr Form kExperts = {"a mixture of experts as base"};
constexpr Form kBlocks = {"blocks of another shape"};

struct Neutral {
  const char* key;
  double value;  // that changes nothing; false is 0 and true is 1, and a list must hold nothing else
  const Form* form;
};

constexpr std::array<Neutral, 58> kNeutral = {{
    {"mlp_bias", 0, &kBias},
    {"use_bias", 0, &kBias},
    {"add_bias_linear", 0, &kBias},
    {"attention_out_bias", 0, &kBias},
    {"lm_head_bias", 0, &kBias},
    {"sandwich_norm", 0, &kNorm},
    {"use_post_norm", 0, &kNorm},
    {"normalize_embedding", 0, &kNorm},
    {"final_logit_softcapping", 0, &kCap},
    {"attn_logit_softcapping", 0, &kCap},
    {"logits_soft_cap", 0, &kCap},
    {"attn_logit_softcap", 0, &kCap},
    {"final_logit_softcap", 0, &kCap},
    {"router_logit_softcapping", 0, &kCap},
    {"clip_qkv", 0, &kClip},
    {"logits_scaling", 1, &kScale},
    {"logit_scale", 1, &kScale},
    {"lm_head_multiplier", 1, &kScale},
    {"embedding_multiplier", 1, &kScale},
    {"embedding_scale", 1, &kScale},
    {"scale_emb", 1, &kScale},
    {"scale_embedding", 0, &kScale},
    {"residual_multiplier", 1, &kScale},
    {"key_multiplier", 1, &kScale},
    {"attention_in_multiplier", 1, &kScale},
    {"attention_out_multiplier", 1, &kScale},
    {"mlp_multipliers", 1, &kScale},
    {"use_mup", 0, &kScale},
    {"scale_attn_weights", 1, &kScale},
    {"scale_attn_by_inverse_layer_idx", 0, &kScale},
    {"attn_temperature_tuning", 0, &kScale},
    {"use_logn_attn", 0, &kScale},
    {"use_rope", 1, &kRopeLayers},
    {"no_rope_layers", 1, &kRopeLayers},
    {"no_rope_layer_interval", 0, &kRopeLayers},
    {"rope_interleave", 0, &kPosition},
    {"rope_interleaved", 0, &kPosition},
    {"rotary_interleaved", 0, &kPosition},
    {"rotary_pct", 1, &kPosition},
    {"rope_ratio", 1, &kPosition},
    {"use_dynamic_ntk", 0, &kPosition},
    {"use_mrope", 0, &kPosition},
    {"alibi", 0, &kPosition},
    {"use_alibi", 0, &kPosition},
    {"is_causal", 1, &kMask},
    {"use_bidirectional_attention", 0, &kMask},
    {"attention_chunk_size", 0, &kMask},
    {"num_experts", 0, &kExperts},
    {"num_local_experts", 0, &kExperts},
    {"n_routed_experts", 0, &kExperts},
    {"moe_num_experts", 0, &kExperts},
    {"kv_lora_rank", 0, &kBlocks},
    {"q_lora_rank", 0, &kBlocks},
    {"num_kv_shared_layers", 0, &kBlocks},
    {"use_parallel_residual", 0, &kBlocks},
    {"parallel_attn", 0, &kBlocks},
    {"is_encoder_decoder", 0, &kBlocks},
    {"add_cross_attention", 0, &kBlocks},
}};

bool is_neutral(const nlohmann::json& value, double neutral) {
  if (value.is_boolean()) return (value.get<bool>() ? 1.0 : 0.0) == neutral;
  if (value.is_number()) return std::abs(value.get<double>() - neutral) <= 1e-6 * std::abs(neutral);
  if (!value.is_array()) return false;
  for (const nlohmann::json& item : value)
    if (item.is_array() || !is_neutral(item, neutral)) return false;
  return true;
}

void refuse(const ConfigFields& fields, const FamilyTraits& traits, const Neutral& n) {
  const nlohmann::json* value = fields.find(n.key);
  if (value == nullptr || is_neutral(*value, n.value)) return;
  const ConfigKeys read = n.form->keys != nullptr ? n.form->keys(traits) : ConfigKeys{};
  if (std::ranges::find(read, n.key) != read.end()) return;
  const std::string only = value->is_boolean() ? (n.value == 0 ? "false" : "true") : str_cat(n.value);
  refuse_beyond_row(fields, n.key, str_cat(shown(*value), ", which means ", n.form->what, ","), traits,
                    str_cat("only ", only, ", or no such key"));
}

void refuse_activations(const ConfigFields& fields, const FamilyTraits& traits) {
  const std::span<const std::string_view> names = activation_names(traits.activation);
  for (const char* key : {"hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act"}) {
    const std::optional<std::string> act = fields.string(key);
    if (!act || std::ranges::find(names, *act) != names.end()) continue;
    refuse_beyond_row(fields, key, str_cat("the activation ", in_quotes(*act)), traits,
                      std::string(names.front()));
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
    fields.fail(
        key.c_str(),
        str_cat(shown(value),
                " means that training drops a part of what the base model computes, which is "
                "not supported; only 0 is, or no such key (lora.lora_dropout and moe.adapter_dropout are "
                "those of what is trained)"));
  }
}

void refuse_biases(const ConfigFields& fields, const FamilyTraits& traits) {
  // In a family with biases on q, k and v this key says nothing; a bias on o is found among the weights.
  if (fields.boolean("attention_bias").value_or(false) && !traits.qkv_bias()) {
    refuse_beyond_row(fields, "attention_bias", "'true', which means biases on q, k, v and o,", traits,
                      "only false, or no such key");
  }
  const bool qkv = fields.boolean("qkv_bias").value_or(traits.qkv_bias());
  if (qkv != traits.qkv_bias()) {
    refuse_beyond_row(
        fields, "qkv_bias",
        str_cat(qkv ? "'true'" : "'false'", ", which means ", qkv ? "" : "no ", "biases on q, k and v,"),
        traits, str_cat("only ", qkv ? "false" : "true", ", or no such key"));
  }
  (void)fields.boolean("mlp_bias");  // a number is a mistake
}

// Families with norms of q and k have them whatever the file says; these keys are of others.
void refuse_qk_norms(const ConfigFields& fields, const FamilyTraits& traits) {
  const bool norms = traits.qk_norm != QkNorm::kNone;
  for (const char* key : {"qk_norm", "use_qk_norm", "qk_layernorm"}) {
    const nlohmann::json* value = fields.find(key);
    if (value == nullptr || is_neutral(*value, norms ? 1 : 0)) continue;
    refuse_beyond_row(fields, key,
                      str_cat(shown(*value), ", which means ", norms ? "no " : "", "norms of q and k,"),
                      traits, str_cat("only ", norms ? "true" : "false", ", or no such key"));
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

void refuse_beyond_row(const ConfigFields& fields, const char* key, const std::string& what,
                       const FamilyTraits& traits, const std::string& supported) {
  fields.fail(key, str_cat(what, " is not supported in a model of type ", traits.model_type,
                           "; supported: ", supported));
}

void refuse_unsupported(const ConfigFields& fields, const ModelConfig& model) {
  const FamilyTraits& traits = traits_of(model.family);
  refuse_activations(fields, traits);
  refuse_other_epsilons(fields);
  refuse_dropout(fields);
  refuse_biases(fields, traits);
  refuse_qk_norms(fields, traits);
  for (const Neutral& n : kNeutral) refuse(fields, traits, n);
  // Those whose neutral value depends on the model's sizes.
  const auto head = static_cast<double>(model.head_dim);
  for (const Neutral& n : std::array<Neutral, 9>{{
           {"attention_multiplier", 1 / std::sqrt(head), &kScale},
           {"query_pre_attn_scalar", head, &kScale},
           {"rotary_dim", head, &kPartly},
           {"qk_rope_head_dim", head, &kPartly},
           {"v_head_dim", head, &kBlocks},
           {"qk_head_dim", head, &kBlocks},
           {"kv_channels", head, &kBlocks},
           {"dim_model_base", static_cast<double>(model.hidden_size), &kScale},
           {"scale_depth", std::sqrt(static_cast<double>(model.num_hidden_layers)), &kScale},
       }}) {
    refuse(fields, traits, n);
  }
}

}  // namespace pesc
