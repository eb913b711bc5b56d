#include "runtime/hf/pesc_folder.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "model/hf_names.h"
#include "ops/core/check.h"
#include "runtime/hf/config_fields.h"
#include "runtime/hf/json_file.h"

namespace pesc {
namespace {

constexpr const char* kConfigFile = "config.json";
constexpr uint64_t kMostConfigFile = 16 << 20;

// Ours, then the published ones.
constexpr std::array<std::string_view, 9> kKeys = {"adapter_experts", "adapter_topk", "adapter_dim",
                                                   "adapter_scaling", "num_experts",  "topk",
                                                   "moe_dtype",       "moe_scaling",  "output_router_logits"};
constexpr std::string_view kType = "pesc_", kClass = "Pesc";

void remove_prefix(nlohmann::json& value, std::string_view prefix) {
  if (value.is_string() && value.get<std::string>().starts_with(prefix))
    value = value.get<std::string>().substr(prefix.size());
}

bool is_ours(const nlohmann::json& document) {
  return document.is_object() && document.contains("adapter_experts");
}
bool is_published(const nlohmann::json& document) {
  return document.is_object() && document.contains("num_experts") && document.contains("topk") &&
         document.contains("adapter_dim");
}

}  // namespace

bool is_expert_key(std::string_view key) {
  return std::ranges::find(kKeys, key) != kKeys.end();
}

std::optional<FolderExperts> read_folder_experts(const nlohmann::json& document, const std::string& where) {
  const bool ours = is_ours(document);
  if (!ours && !is_published(document)) return {};
  const ConfigFields fields(document, where);
  FolderExperts out;
  out.num_experts = fields.required_integer(ours ? "adapter_experts" : "num_experts", 1);
  out.num_experts_per_tok = fields.required_integer(ours ? "adapter_topk" : "topk", 1);
  out.adapter_dim = fields.required_integer("adapter_dim", 1);
  out.adapter_scaling = fields.positive(ours ? "adapter_scaling" : "moe_scaling").value_or(1);
  return out;
}

std::optional<FolderExperts> read_folder_experts(const std::string& folder, Links links) {
  return read_folder_experts(read_json_file(folder, kConfigFile, kMostConfigFile, links),
                             (std::filesystem::path(folder) / kConfigFile).string());
}

nlohmann::json without_experts(nlohmann::json document) {
  if (!is_ours(document) && !is_published(document)) return document;
  for (const std::string_view key : kKeys) document.erase(std::string(key));
  if (const auto type = document.find("model_type"); type != document.end()) remove_prefix(*type, kType);
  const auto classes = document.find("architectures");
  if (classes != document.end() && classes->is_array())
    for (nlohmann::json& name : *classes) remove_prefix(name, kClass);
  return document;
}

std::vector<std::string> expert_names(int64_t layers, int64_t experts) {
  std::vector<std::string> names;
  for (int64_t i = 0; i < layers; ++i) {
    names.push_back(hf::router(i));
    for (int64_t e = 0; e < experts; ++e) {
      names.push_back(hf::adapter_down(i, e));
      names.push_back(hf::adapter_up(i, e));
    }
  }
  return names;
}

void rename_experts(HfFolder& folder, const std::vector<std::string>& names) {
  constexpr std::string_view kOurs = ".experts.expert_", kTheirs = ".experts.";
  for (const std::string& name : names) {
    const size_t at = name.find(kOurs);
    if (at == std::string::npos || folder.has(name)) continue;
    std::string other = name;
    other.replace(at, kOurs.size(), kTheirs);
    if (folder.has(other)) folder.rename(other, name);
  }
}

void check_folder_experts(const FolderExperts& folder, const PescConfig& pesc, const std::string& path,
                          const char* field) {
  const std::string model =
      str_cat(field, " '", path, "' is a PESC model of ", folder.num_experts, " experts a layer");
  if (pesc.mode != TrainMode::kPesc) {
    throw UsageError(str_cat(model, ", which train.mode ", pesc.mode == TrainMode::kLora ? "LORA" : "FULL",
                             " would leave out; use train.mode PESC, or the dense base that it was made of"));
  }
  const MoeConfig& moe = pesc.moe;
  const auto compare = [&](const char* field, auto here, auto there) {
    if (here == there) return;
    throw UsageError(str_cat(model, " and has moe.", field, " ", there, ", but the experiment says ", here,
                             "; set moe.", field, ": ", there, " to go on from it"));
  };
  compare("num_experts", moe.num_experts, folder.num_experts);
  compare("num_experts_per_tok", moe.num_experts_per_tok, folder.num_experts_per_tok);
  compare("adapter_dim", moe.adapter_dim, folder.adapter_dim);
  compare("adapter_scaling", moe.adapter_scaling, folder.adapter_scaling);
}

}  // namespace pesc
