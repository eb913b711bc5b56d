// Model folders that hold a PESC model: what `pesc export` writes, and what the authors of PESC (Camelidae) and others after them
// (Sparsetral) have published. Their dense part is read as any folder is; the routers and adapters are the values that training
// goes on from.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "runtime/hf/hf_folder.h"

namespace pesc {

// The experts that a config.json describes.
struct FolderExperts {
  int64_t num_experts = 0, num_experts_per_tok = 0, adapter_dim = 0;
  double adapter_scaling = 1;
};

// Nothing where the document is of a dense model. Throws DataError for a key of another type; `where` is the file.
[[nodiscard]] std::optional<FolderExperts> read_folder_experts(const nlohmann::json& document,
                                                               const std::string& where);
// The same of `folder`/config.json.
[[nodiscard]] std::optional<FolderExperts> read_folder_experts(const std::string& folder, Links links);

// The keys of config.json that describe experts, in all of these forms.
[[nodiscard]] bool is_expert_key(std::string_view key);
// The document of the dense part: without these keys, and with the names of the family's own classes.
[[nodiscard]] nlohmann::json without_experts(nlohmann::json document);

// The names of all routers and adapters of such a model.
[[nodiscard]] std::vector<std::string> expert_names(int64_t layers, int64_t experts);
// From now on the folder's experts have these names, where it calls them `experts.E.` (Sparsetral).
void rename_experts(HfFolder& folder, const std::vector<std::string>& names);

// Throws UsageError where the experiment does not train the folder's own experts: another mode than PESC, or another size.
// `field` is the experiment's that names the folder.
void check_folder_experts(const FolderExperts& folder, const PescConfig& pesc, const std::string& path,
                          const char* field = "model.path");

}  // namespace pesc
