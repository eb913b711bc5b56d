// Writing of config.json. transformers 4 reads rope_theta and rope_scaling, transformers 5 rope_parameters;
// each ignores what it does not know, so both are written and agree.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "model/families.h"
#include "ops/core/check.h"
#include "runtime/hf/atomic_file.h"
#include "runtime/hf/config_json.h"
#include "runtime/hf/config_parts.h"
#include "runtime/hf/json_file.h"

namespace pesc {
namespace {

using nlohmann::ordered_json;

// The kind and its numbers, without theta; null for the default kind.
ordered_json rope_scaling(const RopeConfig& rope) {
  const char* kind = rope_kind_name(rope.kind);
  ordered_json out;
  if (rope.kind == RopeKind::kLinear) {
    out = {{"rope_type", kind}, {"type", kind}, {"factor", rope.factor}};
  } else if (rope.kind == RopeKind::kLlama3) {
    out = {{"rope_type", kind},
           {"factor", rope.factor},
           {"low_freq_factor", rope.low_freq_factor},
           {"high_freq_factor", rope.high_freq_factor},
           {"original_max_position_embeddings", rope.original_max_positions}};
  }
  return out;
}

void add_rope(const RopeConfig& rope, ordered_json& out) {
  const ordered_json scaling = rope_scaling(rope);
  ordered_json parameters =
      scaling.is_null() ? ordered_json{{"rope_type", rope_kind_name(rope.kind)}} : scaling;
  parameters.erase("type");
  parameters["rope_theta"] = rope.theta;
  out["rope_parameters"] = parameters;
  out["rope_scaling"] = scaling;
  out["rope_theta"] = rope.theta;
}

void add_window(const ModelConfig& config, ordered_json& out) {
  const ordered_json window =
      config.sliding_window > 0 ? ordered_json(config.sliding_window) : ordered_json();
  switch (traits_of(config.family).window_layers) {
    case WindowLayers::kNone:
      break;
    case WindowLayers::kAll:
      out["sliding_window"] = window;
      break;
    case WindowLayers::kUpper:
      out["sliding_window"] = window;
      out["use_sliding_window"] = false;
      out["max_window_layers"] = config.num_hidden_layers;
      break;
    case WindowLayers::kWithoutRope:
      out["sliding_window"] = window;
      out["use_sliding_window"] = false;
      break;
  }
}

void add_rope_layers(const ModelConfig& config, ordered_json& out) {
  const FamilyTraits& traits = traits_of(config.family);
  PESC_CHECK(traits.rope_layers == RopeLayers::kListed || config.layers_without_rope.empty(),
             "layers without RoPE in a ", traits.model_type, " model");
  if (traits.rope_layers != RopeLayers::kListed) return;
  ordered_json& list = out["no_rope_layers"] = ordered_json::array();
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer)
    list.push_back(config.rotates(layer) ? 1 : 0);
  out["no_rope_layer_interval"] = traits.defaults.no_rope_layer_interval;
}

}  // namespace

double read_initializer_range(const std::string& folder) {
  constexpr uint64_t kMaxBytes = 16 << 20;
  const nlohmann::json config = read_json_file(folder, "config.json", kMaxBytes);
  const auto text = config.find("text_config");
  const nlohmann::json& of_text = text != config.end() && text->is_object() ? *text : config;
  const auto found = of_text.find("initializer_range");
  return found != of_text.end() && found->is_number() ? found->get<double>() : kUsualInitializerRange;
}

std::string model_config_text(const ModelConfig& config, const std::string& where, double initializer_range) {
  const FamilyTraits& traits = traits_of(config.family);
  const bool in_some_layers =
      traits.window_layers == WindowLayers::kUpper || traits.window_layers == WindowLayers::kWithoutRope;
  if (in_some_layers && config.sliding_window > 0) {
    throw DataError(
        str_cat(where, ": a ", traits.model_type,
                " model with a sliding window cannot be written: which layers have it is not known"));
  }
  PESC_CHECK(config.qkv_bias == traits.qkv_bias(), "biases of a ", traits.model_type, " model");
  ordered_json out;
  out["architectures"] = ordered_json::array({std::string(traits.architecture)});
  out["model_type"] = std::string(traits.model_type);
  out["dtype"] = "float32";
  out["torch_dtype"] = "float32";
  out["vocab_size"] = config.vocab_size;
  out["hidden_size"] = config.hidden_size;
  out["intermediate_size"] = config.intermediate_size;
  out["num_hidden_layers"] = config.num_hidden_layers;
  out["num_attention_heads"] = config.num_attention_heads;
  out["num_key_value_heads"] = config.num_key_value_heads;
  out["head_dim"] = config.head_dim;
  out["max_position_embeddings"] = config.max_position_embeddings;
  out["hidden_act"] = std::string(activation_names(traits.activation).front());
  out["rms_norm_eps"] = config.rms_norm_eps;
  add_rope(config.rope, out);
  add_rope_layers(config, out);
  add_window(config, out);
  for (const ConfigConstant& constant : traits.constants)
    out[std::string(constant.key)] = ordered_json::parse(constant.json);
  out["attention_dropout"] = 0.0;
  out["initializer_range"] = initializer_range;
  out["tie_word_embeddings"] = config.tie_word_embeddings;
  out["use_cache"] = true;
  out["bos_token_id"] = config.bos_id >= 0 ? ordered_json(config.bos_id) : ordered_json();
  if (config.eos_ids.size() == 1) {
    out["eos_token_id"] = config.eos_ids.front();
  } else {
    out["eos_token_id"] = config.eos_ids.empty() ? ordered_json() : ordered_json(config.eos_ids);
  }
  out["pad_token_id"] = nullptr;
  return out.dump(2) + "\n";
}

void write_model_config(const std::string& folder, const ModelConfig& config, double initializer_range) {
  const std::string path = (std::filesystem::path(folder) / "config.json").string();
  const std::string text = model_config_text(config, path, initializer_range);
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace pesc
