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

// What LoRA of a run on quantised frozen weights is merged into.
enum class MergeInto {
  kOriginal,     // the base's own weights, as its folder holds them
  kDequantised,  // what the codes and scales stand for that the run computed with
};

// "ORIGINAL", "DEQUANTISED"; in any case of letters. Throws UsageError for another name.
[[nodiscard]] MergeInto merge_into(const std::string& name);
[[nodiscard]] const char* merge_into_name(MergeInto into);
// Both, and what each means: for errors.
inline constexpr const char* kMergeIntoChoices =
    "--merge_into DEQUANTISED (what the quantised weights stand for: the model that was trained, to "
    "rounding) or "
    "--merge_into ORIGINAL (the base's own weights: another model, which differs by the error of quantising)";

}  // namespace pesc
