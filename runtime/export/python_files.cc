#include "runtime/export/python_files.h"

#include "ops/core/check.h"

namespace pesc {
namespace {

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

}  // namespace

std::string class_stem(const FamilyTraits& traits) {
  constexpr std::string_view kEnd = "ForCausalLM";
  std::string_view stem = traits.architecture;
  PESC_CHECK(stem.ends_with(kEnd), "the architecture ", stem);
  stem.remove_suffix(kEnd.size());
  return std::string(stem);
}

std::string python_text(const PythonFile& file, const FamilyTraits& traits) {
  std::string text(file.text);
  replace_all(text, "Llama", class_stem(traits));
  replace_all(text, "llama", traits.model_type);
  return text;
}

}  // namespace pesc
