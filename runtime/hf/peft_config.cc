#include "runtime/hf/peft_config.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "ops/core/check.h"
#include "runtime/hf/config_fields.h"
#include "runtime/hf/json_file.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using namespace std::string_view_literals;

constexpr const char* kExperts = "moe_adapter";

// Keys that are read below, or that change nothing of what the adapter computes.
constexpr std::array kKnown = {"peft_type"sv,         "r"sv,
                               "lora_alpha"sv,        "target_modules"sv,
                               "rank_pattern"sv,      "alpha_pattern"sv,
                               "modules_to_save"sv,   "bias"sv,
                               "init_lora_weights"sv, "base_model_name_or_path"sv,
                               "task_type"sv,         "revision"sv,
                               "inference_mode"sv,    "auto_mapping"sv,
                               "peft_version"sv,      "lora_dropout"sv,
                               "megatron_core"sv,     "qalora_group_size"sv,
                               "runtime_config"sv};

// Keys that make another adapter of it, and what that is called.
constexpr std::array kOthers = {
    std::pair{"use_dora"sv, "DoRA"sv},
    std::pair{"use_rslora"sv, "rsLoRA (a scale of lora_alpha / sqrt(r))"sv},
    std::pair{"lora_bias"sv, "biases of LoRA"sv},
    std::pair{"use_qalora"sv, "QALoRA"sv},
    std::pair{"fan_in_fan_out"sv, "weights of the shape [in, out]"sv},
    std::pair{"layers_to_transform"sv, "LoRA on some layers"sv},
    std::pair{"layer_replication"sv, "repeated layers"sv},
    std::pair{"exclude_modules"sv, "LoRA on some layers"sv},
    std::pair{"trainable_token_indices"sv, "trained rows of the embedding"sv},
    std::pair{"target_parameters"sv, "LoRA on parameters that are no linear's"sv}};

// Initialisations that subtract something from the base's weights. The others are forgotten once training begins.
constexpr std::array kChangesBase = {"pissa"sv, "olora"sv, "loftq"sv, "corda"sv, "lora_ga"sv};

bool is_set(const nlohmann::json& value) {
  return !(value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
           (value.is_structured() && value.empty()) ||
           (value.is_string() && value.get<std::string>().empty()));
}

void refuse_other_adapters(const ConfigFields& fields) {
  for (const auto& [key, value] : fields.object_items()) {
    if (!is_set(value) || std::ranges::find(kKnown, std::string_view(key)) != kKnown.end()) continue;
    const auto* other =
        std::ranges::find(kOthers, std::string_view(key), [](const auto& o) { return o.first; });
    if (other != kOthers.end())
      fields.fail(key.c_str(), str_cat("asks for ", other->second, ", which training cannot go on from"));
    fields.fail(printable(key).c_str(),
                "is set and not known here, so that the adapter may be another than plain LoRA");
  }
  if (const auto bias = fields.string("bias"); bias && *bias != "none")
    fields.fail("bias",
                str_cat("is ", in_quotes(*bias), "; biases are not trained here, only 'none' can be"));
  const nlohmann::json* init = fields.find("init_lora_weights");
  if (init == nullptr || !init->is_string()) return;
  std::string lower = init->get<std::string>();
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
  if (std::ranges::any_of(kChangesBase, [&](std::string_view name) { return lower.starts_with(name); })) {
    fields.fail("init_lora_weights", str_cat("is ", in_quotes(lower),
                                             ", which changes the base's weights too; convert the adapter to "
                                             "plain LoRA (PEFT: path_initial_model_for_weight_conversion)"));
  }
}

bool reads_experts(const ConfigFields& fields) {
  const auto saved = fields.strings("modules_to_save");
  if (!saved || saved->empty()) return false;
  for (const std::string& module : *saved) {
    if (module == kExperts) continue;
    fields.fail("modules_to_save",
                str_cat("names ", in_quotes(module), ", which is frozen here; only '", kExperts,
                        "' (the routers and adapters of PESC) can be saved whole"));
  }
  return true;
}

}  // namespace

int64_t PeftConfig::rank_of(const std::string& module_end) const {
  const auto it = rank_pattern.find(module_end);
  return it == rank_pattern.end() ? r : it->second;
}

double PeftConfig::alpha_of(const std::string& module_end) const {
  const auto it = alpha_pattern.find(module_end);
  return it == alpha_pattern.end() ? lora_alpha : it->second;
}

PeftConfig read_peft_config(const std::string& folder, Links links) {
  if (!folder_has(folder, kPeftConfigFile)) {
    throw DataError(str_cat(folder, ": has no ", kPeftConfigFile,
                            "; give the folder of a PEFT adapter, as `pesc export --format PEFT` or PEFT's "
                            "save_pretrained writes it"));
  }
  const nlohmann::json document = read_json_file(folder, kPeftConfigFile, kMostConfigBytes, links);
  const ConfigFields fields(document, (std::filesystem::path(folder) / kPeftConfigFile).string());
  const auto type = fields.string("peft_type");
  if (!type || *type != "LORA") {
    fields.fail("peft_type",
                str_cat("is ", type ? in_quotes(*type) : "absent", "; training goes on from 'LORA' alone"));
  }
  refuse_other_adapters(fields);
  PeftConfig out;
  out.base = fields.string("base_model_name_or_path").value_or("");
  out.r = fields.required_integer("r", 1);
  out.lora_alpha = fields.required_positive("lora_alpha");
  const nlohmann::json* targets = fields.find("target_modules");
  if (targets != nullptr && !targets->is_string())
    out.target_modules = fields.strings("target_modules").value_or(std::vector<std::string>{});
  if (const auto ranks = fields.object("rank_pattern")) {
    for (const auto& [key, value] : ranks->object_items())
      out.rank_pattern[key] = ranks->required_integer(key.c_str(), 1);
  }
  if (const auto alphas = fields.object("alpha_pattern")) {
    for (const auto& [key, value] : alphas->object_items())
      out.alpha_pattern[key] = alphas->required_positive(key.c_str());
  }
  out.saves_experts = reads_experts(fields);
  return out;
}

}  // namespace pesc
