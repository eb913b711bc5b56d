// The Python files that an exported model brings along: configuration_pesc.py and modeling_pesc.py (a PESC model) and
// tokenization_pesc.py (see transformers_tokenizer.h) of this folder, which CMake puts into the program.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "model/families.h"

namespace pesc {

struct PythonFile {
  std::string_view name, text;
};
// As they stand in this folder: for Llama.
[[nodiscard]] std::span<const PythonFile> python_files();

// tokenization_pesc.py, of any family.
[[nodiscard]] PythonFile tokenizer_python_file();

// The text for another family: its classes are those of Llama by other names.
[[nodiscard]] std::string python_text(const PythonFile& file, const FamilyTraits& traits);

// "Llama" of LlamaForCausalLM, LlamaConfig and so on.
[[nodiscard]] std::string class_stem(const FamilyTraits& traits);

}  // namespace pesc
