// The dense base model and what is added to it, as plain structs. runtime/ reads the files they come from.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/families.h"
#include "model/frozen_format.h"

namespace pesc {

// Rotary position embedding (Su et al., 2021). `linear` divides positions by `factor`; `llama3` interpolates
// by wavelength (Llama 3.1 model card).
struct RopeConfig {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_positions = 0;
};

// The seven linears of a layer that LoRA may sit on, in the order of the table in model/parameters.h.
enum class Linear { kQ, kK, kV, kO, kGate, kUp, kDown };
inline constexpr int kLinears = 7;
[[nodiscard]] const char* linear_name(Linear linear);  // "q_proj", ... as Hugging Face names the module

// What a folder that is quantised holds its linears in.
struct QuantizedBase {
  FrozenFormat format = FrozenFormat::kFP8;
  std::vector<int64_t> plain;  // layer * kLinears + linear of those that it left unquantised, rising
  [[nodiscard]] bool holds(int64_t layer, Linear linear) const;  // whether this linear is quantised
};

// The dense decoder, as `config.json` of a Hugging Face folder describes it.
struct ModelConfig {
  Family family = Family::kLlama;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-5;
  RopeConfig rope;
  std::vector<int64_t> layers_without_rope;  // rising; empty: every layer rotates q and k
  bool qkv_bias = false;                     // as the family's row says
  bool tie_word_embeddings = false;
  int64_t bos_id = -1;           // -1: the model names none
  std::vector<int64_t> eos_ids;  // may be empty
  int64_t pad_id = -1;           // -1: the model names none; nothing here pads with it
  // 0: none. Otherwise a position attends to at most this many positions, itself included. No kernel
  // implements it: the callers that know the sequence length refuse a longer one; up to this length the
  // window changes nothing.
  int64_t sliding_window = 0;
  std::optional<QuantizedBase> quantized;  // absent: the folder holds values

  [[nodiscard]] bool rotates(int64_t layer) const;  // whether the layer rotates q and k
  [[nodiscard]] bool norms_qk() const { return traits_of(family).qk_norm == QkNorm::kPerHead; }
};

enum class TrainMode {
  kPesc,  // router, adapters and LoRA
  kLora,  // LoRA only: the dense baseline
  kFull,  // every dense parameter, nothing added
};

[[nodiscard]] int64_t output_rows(const ModelConfig& model, Linear linear);  // rows of its whole weight

struct LoraConfig {
  int64_t r = 0;  // 0: no LoRA
  double lora_alpha = 16;
  double lora_dropout = 0;
  std::vector<Linear> target_modules;
  [[nodiscard]] bool on(Linear linear) const;
};

struct MoeConfig {
  int64_t num_experts = 0;  // 0: the FFN stays dense
  int64_t num_experts_per_tok = 2;
  int64_t adapter_dim = 0;
  double adapter_scaling = 1;
  double adapter_dropout = 0;
  double router_aux_loss_coef = 0.01;
};

struct PescConfig {
  TrainMode mode = TrainMode::kPesc;
  LoraConfig lora;
  MoeConfig moe;
};

// Every interval-th of so many layers: those without RoPE in a family that lists them (RopeLayers::kListed)
// where nothing lists them. `interval` is at least 1.
[[nodiscard]] std::vector<int64_t> every_nth_layer(int64_t layers, int64_t interval);

// Throws UsageError or DataError where a model of this shape cannot be built or split over tp ranks and ep
// ranks; the message names the field and what would do.
void validate_model(const ModelConfig& model);
void validate_layout(const ModelConfig& model, const PescConfig& pesc, int world, int tp, int ep);

}  // namespace pesc
