// Names of tensors in Hugging Face checkpoints, which the families of model/families.h share with Llama, and of
// what PESC and LoRA add to them. Where a family's files have other tensors, these are named as the parts of
// what is there: runtime/hf/published_names.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace pesc::hf {

inline const std::string kEmbedding = "model.embed_tokens.weight";
inline const std::string kHead = "lm_head.weight";
inline const std::string kFinalNorm = "model.norm.weight";

inline std::string layer(int64_t i) {
  return "model.layers." + std::to_string(i) + ".";
}
inline std::string module(int64_t i, Linear l) {
  const bool ffn = l == Linear::kGate || l == Linear::kUp || l == Linear::kDown;
  return layer(i) + (ffn ? "mlp." : "self_attn.") + linear_name(l);
}
inline std::string weight(int64_t i, Linear l) {
  return module(i, l) + ".weight";
}
inline std::string bias(int64_t i, Linear l) {
  return module(i, l) + ".bias";
}
inline std::string lora_a(int64_t i, Linear l) {
  return module(i, l) + ".lora_A.weight";
}
inline std::string lora_b(int64_t i, Linear l) {
  return module(i, l) + ".lora_B.weight";
}
inline std::string input_norm(int64_t i) {
  return layer(i) + "input_layernorm.weight";
}
inline std::string post_norm(int64_t i) {
  return layer(i) + "post_attention_layernorm.weight";
}
inline std::string q_norm(int64_t i) {
  return layer(i) + "self_attn.q_norm.weight";
}
inline std::string k_norm(int64_t i) {
  return layer(i) + "self_attn.k_norm.weight";
}
inline std::string router(int64_t i) {
  return layer(i) + "mlp.moe_adapter.router.weight";
}
inline std::string expert(int64_t i, int64_t e) {
  return layer(i) + "mlp.moe_adapter.experts.expert_" + std::to_string(e);
}
inline std::string adapter_down(int64_t i, int64_t e) {
  return expert(i, e) + ".adapter_down.weight";
}
inline std::string adapter_up(int64_t i, int64_t e) {
  return expert(i, e) + ".adapter_up.weight";
}

// One tensor of a family's files that holds the weights of several linears, one below the other.
struct Fused {
  std::string name;
  std::vector<Linear> parts;
};
inline std::vector<Fused> fused_weights(FusedLinears form, int64_t i) {
  if (form == FusedLinears::kNone) return {};
  return {{layer(i) + "self_attn.qkv_proj.weight", {Linear::kQ, Linear::kK, Linear::kV}},
          {layer(i) + "mlp.gate_up_proj.weight", {Linear::kGate, Linear::kUp}}};
}

}  // namespace pesc::hf
