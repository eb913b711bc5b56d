// adapter_config.json of a LoRA adapter of PEFT.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/hf/mapped_file.h"

namespace pesc {

struct PeftConfig {
  std::string base;  // base_model_name_or_path; may be empty
  int64_t r = 0;
  double lora_alpha = 0;
  std::vector<std::string> target_modules;  // empty: a pattern
  // Modules with another rank or alpha, by the end of their names.
  std::map<std::string, int64_t> rank_pattern;
  std::map<std::string, double> alpha_pattern;
  bool saves_experts = false;  // modules_to_save is ["moe_adapter"]

  [[nodiscard]] int64_t rank_of(const std::string& module_end) const;
  [[nodiscard]] double alpha_of(const std::string& module_end) const;
};

inline constexpr const char* kPeftConfigFile = "adapter_config.json";

// Throws DataError naming the file and the key where it is no plain LoRA (DoRA, rsLoRA, biases, an initialisation that changes
// the base, other modules than `moe_adapter` saved whole, a key that is not known and set), or a value is of another type.
[[nodiscard]] PeftConfig read_peft_config(const std::string& folder, Links links);

}  // namespace pesc
