// The modules of a model in transformers that LoRA sits on, as PEFT sees them: a linear by itself, or the module in which the
// family's files have several linears one below the other (FusedLinears).
//
// PEFT knows one LoRA of a module. Those of n linears of a fused module are one of rank n r and alpha n lora_alpha, which has
// the same scale:
//
//   A [n r, in]    the A of each, one below the other
//   B [out, n r]   that of the b-th in the rows of its linear and columns [b r, (b + 1) r); all else is zero
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace pesc {

inline constexpr const char* kPeftPrefix = "base_model.model.";  // of every tensor's name

struct PeftModule {
  struct Part {
    Linear linear;
    int64_t row, rows;  // of the module's output
    int64_t block;      // its place among those with LoRA; -1: it has none
  };
  std::string name;  // "model.layers.0.self_attn.qkv_proj"
  std::vector<Part> parts;
  int64_t rows = 0, blocks = 0;
  [[nodiscard]] bool fused() const { return parts.size() > 1; }
  [[nodiscard]] std::string lora_a() const { return name + ".lora_A.weight"; }
  [[nodiscard]] std::string lora_b() const { return name + ".lora_B.weight"; }
};

// Those of a layer that have LoRA.
[[nodiscard]] std::vector<PeftModule> peft_modules(const ModelConfig& model, const LoraConfig& lora,
                                                   int64_t layer);

// "qkv_proj" of "model.layers.0.self_attn.qkv_proj".
[[nodiscard]] std::string last_part(const std::string& module);

}  // namespace pesc
