// The families of dense decoders, one row of traits each: what a family's config.json calls it, what
// transformers assumes where that file is silent, and the form of its layers.
//
// The rows are read by config.json in and out (runtime/hf/config_*.cc), by model.shape.family of an
// experiment (runtime/config/experiment.cc), by the messages about weight names (runtime/hf/weight_names.cc)
// and by the table in model/families.md, which also says how to add a family.
//
// The enums of the layers' form have a value for each form that the code computes, and no other: a row cannot
// promise what no op does. A key of config.json that asks for another form than its family's row has is
// refused in one place, runtime/hf/config_unsupported.cc.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace pesc {

enum class Family { kLlama, kMistral, kQwen2, kQwen3, kPhi3, kSmolLm3 };

// Linears of a layer that have a bias.
enum class Biases {
  kNone,
  kQkv,  // q_proj, k_proj and v_proj, whatever config.json says
};

// keys_of a form: the keys of config.json that a family with this form reads. In a family that does not read
// them they must have the value that changes nothing.
using ConfigKeys = std::span<const std::string_view>;

// Norms of the heads of q and k, before the rotary embedding. No key of config.json asks for them.
enum class QkNorm {
  kNone,
  kPerHead,  // RMSNorm of each head; q has one weight [head_dim] for all its heads, and k has one
};

// Where the RMSNorms stand.
enum class NormPlaces { kBeforeBlocks };  // before attention, before the FFN, before the head
constexpr ConfigKeys keys_of(NormPlaces /*places*/) {
  return {};
}

// The function of the gated FFN: down(activation(gate(x)) * up(x)).
enum class Activation { kSilu };

// Multipliers of the embedding, the residual, the attention scores or the logits.
enum class Multipliers { kNone };
constexpr ConfigKeys keys_of(Multipliers /*multipliers*/) {
  return {};
}

// Caps of the attention scores or the logits: cap * tanh(x / cap).
enum class SoftCaps { kNone };
constexpr ConfigKeys keys_of(SoftCaps /*caps*/) {
  return {};
}

// Layers that rotate q and k.
enum class RopeLayers {
  kAll,
  kListed,  // those with a 1 in `no_rope_layers`; without the key all but each `no_rope_layer_interval`th
};
inline constexpr std::array<std::string_view, 2> kRopeLayerKeys = {"no_rope_layers",
                                                                   "no_rope_layer_interval"};
constexpr ConfigKeys keys_of(RopeLayers layers) {
  return layers == RopeLayers::kListed ? ConfigKeys(kRopeLayerKeys) : ConfigKeys();
}

// How rotary frequencies follow from the positions (RopeConfig in model/config.h).
enum class RopeKind { kDefault, kLinear, kLlama3 };

// Layers whose attention sees a sliding window, and the keys of config.json that say so.
enum class WindowLayers {
  kNone,   // none; `sliding_window` alone means nothing
  kAll,    // all with `sliding_window`, none where it is null
  kUpper,  // with `use_sliding_window`: those that `layer_types` names, else from `max_window_layers` on
  kWithoutRope,  // with `use_sliding_window`: those that `layer_types` names, else those without RoPE
};

// Linears that stand in one tensor of the files, one below the other (fused_linears in model/hf_names.h).
enum class FusedLinears {
  kNone,
  kQkvAndGateUp,  // q, k and v in qkv_proj, gate and up in gate_up_proj
};

// A key of config.json that has the same value in every model of a family.
struct ConfigConstant {
  std::string_view key, json;  // the value as JSON text
};

struct FamilyTraits {
  Family family;
  std::string_view model_type;    // of config.json; in capitals the experiment's model.shape.family
  std::string_view architecture;  // of config.json; the class in transformers
  // A model of more than text, whose text part is of this family and stands under text_config. Empty: none.
  std::string_view multimodal_type, multimodal_architecture;

  // What transformers assumes where config.json has no such key.
  struct Defaults {
    int64_t max_position_embeddings;
    double rms_norm_eps;
    double rope_theta;
    bool tie_word_embeddings;
    int64_t num_key_value_heads;     // where the key is absent, not null; 0: num_attention_heads
    int64_t head_dim;                // 0: hidden_size / num_attention_heads
    int64_t sliding_window;          // 0: none
    int64_t max_window_layers;       // of WindowLayers::kUpper
    int64_t no_rope_layer_interval;  // of RopeLayers::kListed
  } defaults;

  Biases biases;
  QkNorm qk_norm;
  NormPlaces norm_places;
  Activation activation;
  Multipliers multipliers;
  SoftCaps soft_caps;
  std::span<const RopeKind> rope_kinds;
  RopeLayers rope_layers;
  WindowLayers window_layers;
  FusedLinears fused_linears;

  // Written into a config.json of this family, for readers that expect these keys.
  std::span<const ConfigConstant> constants;

  [[nodiscard]] constexpr bool qkv_bias() const { return biases == Biases::kQkv; }
};

inline constexpr std::array kLlamaRopeKinds = {RopeKind::kDefault, RopeKind::kLinear, RopeKind::kLlama3};
inline constexpr std::array kPhi3RopeKinds = {RopeKind::kDefault};
inline constexpr std::array kLlamaConstants = {ConfigConstant{"attention_bias", "false"},
                                               ConfigConstant{"mlp_bias", "false"},
                                               ConfigConstant{"pretraining_tp", "1"}};
inline constexpr std::array kNoBiasConstants = {ConfigConstant{"attention_bias", "false"}};
inline constexpr std::array kPhi3Constants = {
    ConfigConstant{"attention_bias", "false"}, ConfigConstant{"partial_rotary_factor", "1.0"},
    ConfigConstant{"resid_pdrop", "0.0"}, ConfigConstant{"embd_pdrop", "0.0"}};
inline constexpr std::array kSmolLm3Constants = {ConfigConstant{"attention_bias", "false"},
                                                 ConfigConstant{"mlp_bias", "false"}};

// Every row names every trait: one that is left out is a warning, and warnings are errors.
inline constexpr std::array kFamilies = {
    FamilyTraits{.family = Family::kLlama,
                 .model_type = "llama",
                 .architecture = "LlamaForCausalLM",
                 .multimodal_type = {},
                 .multimodal_architecture = {},
                 .defaults = {.max_position_embeddings = 2048,
                              .rms_norm_eps = 1e-6,
                              .rope_theta = 10000,
                              .tie_word_embeddings = false,
                              .num_key_value_heads = 0,
                              .head_dim = 0,
                              .sliding_window = 0,
                              .max_window_layers = 0,
                              .no_rope_layer_interval = 0},
                 .biases = Biases::kNone,
                 .qk_norm = QkNorm::kNone,
                 .norm_places = NormPlaces::kBeforeBlocks,
                 .activation = Activation::kSilu,
                 .multipliers = Multipliers::kNone,
                 .soft_caps = SoftCaps::kNone,
                 .rope_kinds = kLlamaRopeKinds,
                 .rope_layers = RopeLayers::kAll,
                 .window_layers = WindowLayers::kNone,
                 .fused_linears = FusedLinears::kNone,
                 .constants = kLlamaConstants},
    FamilyTraits{.family = Family::kMistral,
                 .model_type = "mistral",
                 .architecture = "MistralForCausalLM",
                 .multimodal_type = "mistral3",
                 .multimodal_architecture = "Mistral3ForConditionalGeneration",
                 .defaults = {.max_position_embeddings = 4096 * 32,
                              .rms_norm_eps = 1e-6,
                              .rope_theta = 10000,
                              .tie_word_embeddings = false,
                              .num_key_value_heads = 8,
                              .head_dim = 0,
                              .sliding_window = 4096,
                              .max_window_layers = 0,
                              .no_rope_layer_interval = 0},
                 .biases = Biases::kNone,
                 .qk_norm = QkNorm::kNone,
                 .norm_places = NormPlaces::kBeforeBlocks,
                 .activation = Activation::kSilu,
                 .multipliers = Multipliers::kNone,
                 .soft_caps = SoftCaps::kNone,
                 .rope_kinds = kLlamaRopeKinds,
                 .rope_layers = RopeLayers::kAll,
                 .window_layers = WindowLayers::kAll,
                 .fused_linears = FusedLinears::kNone,
                 .constants = {}},
    FamilyTraits{.family = Family::kQwen2,
                 .model_type = "qwen2",
                 .architecture = "Qwen2ForCausalLM",
                 .multimodal_type = {},
                 .multimodal_architecture = {},
                 .defaults = {.max_position_embeddings = 32768,
                              .rms_norm_eps = 1e-6,
                              .rope_theta = 10000,
                              .tie_word_embeddings = false,
                              .num_key_value_heads = 32,
                              .head_dim = 0,
                              .sliding_window = 4096,
                              .max_window_layers = 28,
                              .no_rope_layer_interval = 0},
                 .biases = Biases::kQkv,
                 .qk_norm = QkNorm::kNone,
                 .norm_places = NormPlaces::kBeforeBlocks,
                 .activation = Activation::kSilu,
                 .multipliers = Multipliers::kNone,
                 .soft_caps = SoftCaps::kNone,
                 .rope_kinds = kLlamaRopeKinds,
                 .rope_layers = RopeLayers::kAll,
                 .window_layers = WindowLayers::kUpper,
                 .fused_linears = FusedLinears::kNone,
                 .constants = {}},
    FamilyTraits{.family = Family::kQwen3,
                 .model_type = "qwen3",
                 .architecture = "Qwen3ForCausalLM",
                 .multimodal_type = {},
                 .multimodal_architecture = {},
                 .defaults = {.max_position_embeddings = 32768,
                              .rms_norm_eps = 1e-6,
                              .rope_theta = 10000,
                              .tie_word_embeddings = false,
                              .num_key_value_heads = 32,
                              .head_dim = 128,
                              .sliding_window = 4096,
                              .max_window_layers = 28,
                              .no_rope_layer_interval = 0},
                 .biases = Biases::kNone,
                 .qk_norm = QkNorm::kPerHead,
                 .norm_places = NormPlaces::kBeforeBlocks,
                 .activation = Activation::kSilu,
                 .multipliers = Multipliers::kNone,
                 .soft_caps = SoftCaps::kNone,
                 .rope_kinds = kLlamaRopeKinds,
                 .rope_layers = RopeLayers::kAll,
                 .window_layers = WindowLayers::kUpper,
                 .fused_linears = FusedLinears::kNone,
                 .constants = kNoBiasConstants},
    FamilyTraits{.family = Family::kPhi3,
                 .model_type = "phi3",
                 .architecture = "Phi3ForCausalLM",
                 .multimodal_type = {},
                 .multimodal_architecture = {},
                 .defaults = {.max_position_embeddings = 4096,
                              .rms_norm_eps = 1e-5,
                              .rope_theta = 10000,
                              .tie_word_embeddings = false,
                              .num_key_value_heads = 0,
                              .head_dim = 0,
                              .sliding_window = 0,
                              .max_window_layers = 0,
                              .no_rope_layer_interval = 0},
                 .biases = Biases::kNone,
                 .qk_norm = QkNorm::kNone,
                 .norm_places = NormPlaces::kBeforeBlocks,
                 .activation = Activation::kSilu,
                 .multipliers = Multipliers::kNone,
                 .soft_caps = SoftCaps::kNone,
                 .rope_kinds = kPhi3RopeKinds,
                 .rope_layers = RopeLayers::kAll,
                 .window_layers = WindowLayers::kAll,
                 .fused_linears = FusedLinears::kQkvAndGateUp,
                 .constants = kPhi3Constants},
    FamilyTraits{.family = Family::kSmolLm3,
                 .model_type = "smollm3",
                 .architecture = "SmolLM3ForCausalLM",
                 .multimodal_type = {},
                 .multimodal_architecture = {},
                 .defaults = {.max_position_embeddings = 32768,
                              .rms_norm_eps = 1e-6,
                              .rope_theta = 2000000,
                              .tie_word_embeddings = true,
                              .num_key_value_heads = 4,
                              .head_dim = 0,
                              .sliding_window = 0,
                              .max_window_layers = 0,
                              .no_rope_layer_interval = 4},
                 .biases = Biases::kNone,
                 .qk_norm = QkNorm::kNone,
                 .norm_places = NormPlaces::kBeforeBlocks,
                 .activation = Activation::kSilu,
                 .multipliers = Multipliers::kNone,
                 .soft_caps = SoftCaps::kNone,
                 .rope_kinds = kLlamaRopeKinds,
                 .rope_layers = RopeLayers::kListed,
                 .window_layers = WindowLayers::kWithoutRope,
                 .fused_linears = FusedLinears::kNone,
                 .constants = kSmolLm3Constants},
};

constexpr bool rows_follow_the_enum() {
  for (size_t i = 0; i < kFamilies.size(); ++i) {
    if (kFamilies[i].family != static_cast<Family>(i)) return false;
  }
  return true;
}
static_assert(rows_follow_the_enum(), "the rows of kFamilies stand in the order of Family");

[[nodiscard]] constexpr const FamilyTraits& traits_of(Family family) {
  return kFamilies[static_cast<size_t>(family)];
}

// The row with this model type; null when there is none.
[[nodiscard]] constexpr const FamilyTraits* find_family(std::string_view model_type) {
  for (const FamilyTraits& row : kFamilies) {
    if (row.model_type == model_type) return &row;
  }
  return nullptr;
}

}  // namespace pesc
