// The lists of modules in a quantization_config: those that were left as they are.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace pesc {

// An entry is a name, which stands for the module and all below it, at any depth (`lm_head`, `self_attn`,
// `model.layers.0`); or a regular expression that fits from the module's beginning on: after `re:`, or where an entry
// holds one of * + ? [ ( | ^ $ \.
class ModulePatterns {
 public:
  // `where` begins messages. Throws DataError for an expression that is none.
  ModulePatterns(const std::vector<std::string>& entries, const std::string& where);
  ~ModulePatterns();
  ModulePatterns(const ModulePatterns&) = delete;
  ModulePatterns& operator=(const ModulePatterns&) = delete;

  // Throws DataError where an expression takes too many steps.
  [[nodiscard]] bool match(const std::string& module) const;

 private:
  struct Expression;
  std::string where_;
  std::vector<std::string> names_;
  std::vector<Expression> expressions_;
};

}  // namespace pesc
