#include "runtime/export/export_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <string_view>

#include "model/families.h"
#include "ops/core/check.h"
#include "runtime/export/python_files.h"
#include "runtime/hf/config_json.h"
#include "runtime/hf/peft_modules.h"
#include "runtime/hf/pesc_folder.h"

namespace pesc {
namespace {

using nlohmann::ordered_json;

// Keys of the base's config.json that say of the base what does not hold of the export.
const std::set<std::string, std::less<>> kOfTheBaseAlone{
    "_name_or_path", "transformers_version", "auto_map",          "torch_dtype",
    "dtype",         "quantization_config",  "compression_config"};
// Which layers have a window is known in the base's words only. (A longer sequence than the window is not trained on.)
const std::set<std::string, std::less<>> kWindow{"sliding_window", "use_sliding_window", "max_window_layers",
                                                 "layer_types"};

ordered_json ids(const std::vector<int64_t>& all) {
  if (all.empty()) return {};
  return all.size() == 1 ? ordered_json(all.front()) : ordered_json(all);
}
ordered_json id(int64_t one) {
  return one >= 0 ? ordered_json(one) : ordered_json();
}
// 16 rather than 16.0, as such files have it.
ordered_json number(double value) {
  return value == std::floor(value) && std::abs(value) < 1e15 ? ordered_json(static_cast<int64_t>(value))
                                                              : ordered_json(value);
}

std::string text_of(const ordered_json& document) {
  return document.dump(2) + "\n";
}

void set_dtype(ordered_json& out, DType dtype) {
  out["dtype"] = dtype == DType::kBF16 ? "bfloat16" : "float32";
  out["torch_dtype"] = out["dtype"];
}

// Of the dense model.
ordered_json dense_config(const ExportModel& m, DType dtype) {
  ModelConfig model = m.model;
  if (m.base_config.is_object()) model.sliding_window = 0;  // in the base's own words, below
  ordered_json out = ordered_json::parse(model_config_text(model, "config.json", m.initializer_range));
  if (m.base_config.is_object()) {
    for (const auto& [key, value] : m.base_config.items()) {
      if (is_expert_key(key)) continue;  // of a PESC model that the run went on from
      if (kWindow.contains(key) || (!kOfTheBaseAlone.contains(key) && !out.contains(key))) out[key] = value;
    }
  }
  set_dtype(out, dtype);
  out["eos_token_id"] = ids(m.stops);
  out["pad_token_id"] = id(m.model.pad_id);
  return out;
}

}  // namespace

std::string hf_config_text(const ExportModel& m, DType dtype) {
  ordered_json out = dense_config(m, dtype);
  if (m.pesc.mode != TrainMode::kPesc) return text_of(out);
  const FamilyTraits& traits = traits_of(m.model.family);
  const std::string stem = "Pesc" + class_stem(traits);
  out["model_type"] = str_cat("pesc_", traits.model_type);
  out["architectures"] = ordered_json::array({stem + "ForCausalLM"});
  out["auto_map"] = {{"AutoConfig", str_cat("configuration_pesc.", stem, "Config")},
                     {"AutoModel", str_cat("modeling_pesc.", stem, "Model")},
                     {"AutoModelForCausalLM", str_cat("modeling_pesc.", stem, "ForCausalLM")}};
  // Not num_experts and its like: vLLM would take the model for one with experts of its own form.
  out["adapter_experts"] = m.pesc.moe.num_experts;
  out["adapter_topk"] = m.pesc.moe.num_experts_per_tok;
  out["adapter_dim"] = m.pesc.moe.adapter_dim;
  out["adapter_scaling"] = m.pesc.moe.adapter_scaling;
  return text_of(out);
}

std::string why_not_camelidae(const ModelConfig& model, const PescConfig& pesc) {
  if (pesc.mode != TrainMode::kPesc) return "it is for runs of train.mode PESC, since it always has experts";
  const FamilyTraits& traits = traits_of(model.family);
  const auto ignores = [](const auto&... what) {
    return str_cat("the published modelling file ignores ", what..., " and would compute another model");
  };
  if (model.family != Family::kLlama)
    return str_cat("the published modelling file computes Llama models, and the base is a ",
                   traits.model_type, " model");
  if (model.rope.kind != RopeKind::kDefault || model.rope.theta != 10000.0) {
    return model.rope.kind == RopeKind::kDefault
               ? ignores("rope_theta, which is ", model.rope.theta, " here and 10000 there,")
               : ignores("rope_scaling, which the base has,");
  }
  if (model.head_dim * model.num_attention_heads != model.hidden_size)
    return ignores("head_dim, which is ", model.head_dim,
                   " here and hidden_size / num_attention_heads there,");
  if (model.qkv_bias) return ignores("the biases of q_proj, k_proj and v_proj, which the base has,");
  if (model.tie_word_embeddings) return ignores("tie_word_embeddings, which is true here,");
  return {};
}

std::string camelidae_config_text(const ExportModel& m, DType dtype) {
  ordered_json out = dense_config(m, dtype);
  for (const char* key : {"rope_parameters", "head_dim", "dtype"}) out.erase(key);  // not of that time
  out["auto_map"] = {{"AutoConfig", "configuration_camelidae.CamelidaeConfig"},
                     {"AutoModelForCausalLM", "modeling_camelidae.LlamaForCausalLM"}};
  out["moe_dtype"] = "bfloat16";
  out["adapter_dim"] = m.pesc.moe.adapter_dim;
  out["topk"] = m.pesc.moe.num_experts_per_tok;
  out["moe_scaling"] = number(m.pesc.moe.adapter_scaling);
  out["num_experts"] = m.pesc.moe.num_experts;
  out["output_router_logits"] = false;
  return text_of(out);
}

std::string generation_config_text(const ExportModel& m) {
  ordered_json out;
  out["bos_token_id"] = id(m.model.bos_id);
  out["eos_token_id"] = ids(m.stops);
  out["pad_token_id"] = id(m.model.pad_id);
  out["max_new_tokens"] = m.generate.max_new_tokens;
  out["do_sample"] = m.generate.temperature > 0;
  if (m.generate.temperature > 0) {
    out["temperature"] = m.generate.temperature;
    out["top_p"] = m.generate.top_p;
    out["top_k"] = 0;  // transformers' own default is 50
  }
  return text_of(out);
}

std::string adapter_config_text(const ModelConfig& model, const PescConfig& pesc, const std::string& base) {
  std::vector<std::string> targets;
  // Objects, in which a key of another value stands.
  ordered_json ranks = ordered_json::object(), alphas = ordered_json::object();
  for (const PeftModule& module : peft_modules(model, pesc.lora, 0)) {
    const std::string& name = targets.emplace_back(last_part(module.name));
    if (module.blocks == 1) continue;
    ranks[name] = module.blocks * pesc.lora.r;
    alphas[name] = number(static_cast<double>(module.blocks) * pesc.lora.lora_alpha);
  }
  std::ranges::sort(targets);
  ordered_json out;
  out["peft_type"] = "LORA";
  out["task_type"] = "CAUSAL_LM";
  out["base_model_name_or_path"] = base;
  out["inference_mode"] = true;
  out["r"] = pesc.lora.r;
  out["lora_alpha"] = number(pesc.lora.lora_alpha);
  out["lora_dropout"] = pesc.lora.lora_dropout;
  out["target_modules"] = targets;
  out["rank_pattern"] = ranks;
  out["alpha_pattern"] = alphas;
  out["modules_to_save"] =
      pesc.mode == TrainMode::kPesc ? ordered_json::array({"moe_adapter"}) : ordered_json();
  out["bias"] = "none";
  out["fan_in_fan_out"] = false;
  out["use_rslora"] = false;
  out["use_dora"] = false;
  return text_of(out);
}

}  // namespace pesc
