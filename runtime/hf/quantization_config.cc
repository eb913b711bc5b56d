#include "runtime/hf/quantization_config.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "model/families.h"
#include "model/hf_names.h"
#include "ops/core/check.h"
#include "runtime/hf/module_patterns.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr const char* kRead =
    "; read are FP8 with a scale for each row (compressed-tensors, fbgemm_fp8), FP8 with blocks of 128 x 128 "
    "(fp8) and "
    "bitsandbytes' NF4: give a folder in one of these, or the unquantised model";

[[noreturn]] void refuse(const ConfigFields& fields, const char* key, const std::string& value) {
  fields.fail(key, str_cat(value, " is not supported", kRead));
}

void require_string(const ConfigFields& fields, const char* key, const char* supported) {
  const std::optional<std::string> value = fields.string(key);
  if (value && *value != supported) refuse(fields, key, in_quotes(*value));
}

void require_boolean(const ConfigFields& fields, const char* key, bool supported) {
  const std::optional<bool> value = fields.boolean(key);
  if (value && *value != supported) refuse(fields, key, *value ? "true" : "false");
}

void refuse_key(const ConfigFields& fields, const char* key) {
  const nlohmann::json* value = fields.find(key);
  if (value == nullptr || (value->is_structured() && value->empty())) return;
  refuse(fields, key, shown(*value));
}

void require_block(const ConfigFields& fields, const char* key, const nlohmann::json* value) {
  if (value != nullptr && (*value == nlohmann::json::array({128, 128}) || *value == "128x128")) return;
  const std::string is = value == nullptr ? std::string("an absent one")
                         : value->is_array()
                             ? in_quotes(value->dump(-1, ' ', true, nlohmann::json::error_handler_t::replace))
                             : shown(*value);
  fields.fail(key, str_cat(is, " is not supported; the blocks that are read are [128, 128]"));
}

FrozenFormat read_compressed_tensors(const ConfigFields& fields) {
  // "float-quantized" since format names were written; mixed and packed formats are others.
  require_string(fields, "format", "float-quantized");
  refuse_key(fields, "kv_cache_scheme");
  refuse_key(fields, "transform_config");
  if (const auto sparsity = fields.object("sparsity_config")) require_string(*sparsity, "format", "dense");
  const auto groups = fields.object("config_groups");
  if (!groups) fields.fail("config_groups", "is missing; it says how the weights are quantised");
  std::vector<std::string> names;
  for (const auto& [name, group] : groups->object_items()) names.push_back(name);
  if (names.size() != 1)
    fields.fail("config_groups", str_cat("has ", names.size(), " groups; one alone is supported"));
  const auto group = groups->object(names.front().c_str());
  if (!group) groups->fail(names.front().c_str(), "is null");
  if (group->strings("targets").value_or(std::vector<std::string>{}) != std::vector<std::string>{"Linear"})
    group->fail("targets", "only [\"Linear\"] is supported: all linears in one format");
  refuse_key(*group, "output_activations");
  if (const auto inputs = group->object("input_activations")) {
    require_string(*inputs, "type", "float");
    // A static scale of activations cannot be honoured: it belongs to the model as it is served.
    require_boolean(*inputs, "dynamic", true);
  }
  const auto weights = group->object("weights");
  if (!weights) group->fail("weights", "is missing; the weights are not quantised");
  require_string(*weights, "type", "float");
  if (weights->integer("num_bits", 1).value_or(8) != 8)
    refuse(*weights, "num_bits", in_quotes(weights->find("num_bits")->dump()));
  require_boolean(*weights, "symmetric", true);
  require_boolean(*weights, "dynamic", false);
  const std::string strategy = weights->string("strategy").value_or("");
  if (strategy == "channel" || strategy == "tensor") return FrozenFormat::kFP8;
  if (strategy != "block") refuse(*weights, "strategy", in_quotes(strategy));
  require_block(*weights, "block_structure", weights->find("block_structure"));
  return FrozenFormat::kFP8Blocks;
}

FrozenFormat read_fp8(const ConfigFields& fields) {
  require_string(fields, "fmt", "e4m3");
  require_string(fields, "activation_scheme", "dynamic");
  require_block(fields, "weight_block_size", fields.find("weight_block_size"));
  return FrozenFormat::kFP8Blocks;
}

FrozenFormat read_bitsandbytes(const ConfigFields& fields) {
  require_boolean(fields, "load_in_8bit", false);
  require_boolean(fields, "_load_in_8bit", false);
  if (!fields.boolean("load_in_4bit").value_or(fields.boolean("_load_in_4bit").value_or(false)))
    fields.fail("load_in_4bit", str_cat("must be true", kRead));
  // transformers' default is fp4.
  const std::string type = fields.string("bnb_4bit_quant_type").value_or("fp4");
  if (type != "nf4") refuse(fields, "bnb_4bit_quant_type", in_quotes(type));
  require_string(fields, "bnb_4bit_quant_storage", "uint8");
  return fields.boolean("bnb_4bit_use_double_quant").value_or(false) ? FrozenFormat::kNF4
                                                                     : FrozenFormat::kNF4Single;
}

FrozenFormat read_format(const ConfigFields& fields) {
  const std::optional<std::string> method = fields.string("quant_method");
  if (!method && fields.boolean("load_in_4bit").value_or(false))
    return read_bitsandbytes(fields);  // old files
  if (!method) fields.fail("quant_method", str_cat("is missing", kRead));
  if (*method == "compressed-tensors") return read_compressed_tensors(fields);
  if (*method == "fbgemm_fp8") return FrozenFormat::kFP8;
  if (*method == "fp8") return read_fp8(fields);
  if (*method == "bitsandbytes") return read_bitsandbytes(fields);
  refuse(fields, "quant_method", in_quotes(*method));
}

// The names that the module of a linear may have in a published folder.
std::vector<std::string> published_modules(const ModelConfig& model, int64_t layer, Linear linear) {
  constexpr std::string_view kEnd = ".weight";
  std::vector<std::string> names{hf::module(layer, linear)};
  for (const hf::Fused& fused : hf::fused_weights(traits_of(model.family).fused_linears, layer)) {
    if (std::ranges::find(fused.parts, linear) != fused.parts.end())
      names.push_back(fused.name.substr(0, fused.name.size() - kEnd.size()));
  }
  const size_t own = names.size();
  for (size_t i = 0; i < own; ++i) {
    names.push_back("language_model." + names[i]);
    names.push_back("model.language_model." + names[i].substr(std::string_view("model.").size()));
  }
  return names;
}

void add_plain(const ConfigFields& fields, const char* key, const ModelConfig& model,
               std::vector<int64_t>& plain) {
  const auto entries = fields.strings(key);
  if (!entries) return;
  const ModulePatterns patterns(*entries, str_cat(fields.where(), ": ", key));
  for (int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    for (int l = 0; l < kLinears; ++l) {
      const std::vector<std::string> names = published_modules(model, layer, static_cast<Linear>(l));
      if (std::ranges::any_of(names, [&](const std::string& name) { return patterns.match(name); }))
        plain.push_back(layer * kLinears + l);
    }
  }
}

}  // namespace

std::optional<QuantizedBase> read_quantization(const ConfigFields& file, const ModelConfig& model) {
  std::optional<ConfigFields> fields = file.object("quantization_config");
  const auto old = file.object("compression_config");  // of early compressed-tensors
  if (fields && old) file.fail("compression_config", "stands beside quantization_config; take one out");
  if (!fields) fields = old;
  if (!fields) return std::nullopt;
  QuantizedBase base;
  base.format = read_format(*fields);
  for (const char* key : {"ignore", "modules_to_not_convert", "llm_int8_skip_modules", "ignored_layers"})
    add_plain(*fields, key, model, base.plain);
  std::ranges::sort(base.plain);
  const auto twice = std::ranges::unique(base.plain);
  base.plain.erase(twice.begin(), twice.end());
  if (static_cast<int64_t>(base.plain.size()) == model.num_hidden_layers * kLinears) return std::nullopt;
  return base;
}

}  // namespace pesc
