#pragma once

#include <string>

namespace pesc {

enum class ExportFormat {
  kHf,         // a model folder of transformers, LoRA merged; with experts it brings our modelling file
  kPeft,       // an adapter folder of PEFT
  kCamelidae,  // the form that the authors of PESC publish
};

// "HF", "PEFT", "CAMELIDAE"; in any case of letters. Throws UsageError for another name.
[[nodiscard]] ExportFormat export_format(const std::string& name);
[[nodiscard]] const char* format_name(ExportFormat format);

}  // namespace pesc
