#include "runtime/hf/published_names.h"

#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/families.h"
#include "model/hf_names.h"
#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using namespace std::string_view_literals;

// A prefix of the text part, and what stands there in a text model.
constexpr std::array kTextPrefixes = {std::pair{"language_model.model."sv, "model."sv},
                                      std::pair{"language_model.lm_head."sv, "lm_head."sv},
                                      std::pair{"model.language_model."sv, "model."sv}};

void take_prefixes_off(HfFolder& folder) {
  for (const std::string& name : folder.names()) {
    for (const auto& [prefix, own] : kTextPrefixes) {
      if (!name.starts_with(prefix)) continue;
      const std::string to = std::string(own) + name.substr(prefix.size());
      if (folder.has(to)) {
        throw DataError(str_cat(folder.folder(), ": holds both ", in_quotes(name), " and ", in_quotes(to),
                                ", which are two names of one tensor; take one out"));
      }
      folder.rename(name, to);
      break;
    }
  }
}

void split_fused(HfFolder& folder, const ModelConfig& model) {
  const FusedLinears form = traits_of(model.family).fused_linears;
  for (int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    for (const hf::Fused& fused : hf::fused_weights(form, layer)) {
      if (!folder.has(fused.name)) continue;  // named as missing by its parts: weight_names.h
      std::vector<HfFolder::Part> parts;
      for (const Linear linear : fused.parts) {
        parts.push_back({hf::weight(layer, linear), output_rows(model, linear)});
        if (!folder.has(parts.back().name)) continue;
        throw DataError(str_cat(folder.folder(), ": holds both ", in_quotes(fused.name), " and ",
                                in_quotes(parts.back().name), ", which is a part of it; take one out"));
      }
      folder.split(fused.name, parts);
    }
  }
}

// config.json and the files agree on which linears are quantised.
void check_quantized(const HfFolder& folder, const ModelConfig& model) {
  for (int64_t i = 0; i < model.num_hidden_layers * kLinears; ++i) {
    const int64_t layer = i / kLinears;
    const auto linear = static_cast<Linear>(i % kLinears);
    const std::string name = hf::weight(layer, linear);
    if (!folder.has(name)) continue;  // named as missing: weight_names.h
    const bool listed = !model.quantized->holds(layer, linear);
    const bool plain = !folder.quantized(name);
    if (listed == plain) continue;
    const SafetensorsEntry& entry = *folder.entry(name);
    throw DataError(
        str_cat(folder.folder(), ": tensor ", in_quotes(entry.name), " is ",
                plain ? "not quantised (" : "quantised (", printable(entry.type), "), but config.json ",
                plain ? "does not list" : "lists",
                " its module among those that are left as they are (ignore, modules_to_not_convert or "
                "llm_int8_skip_modules of quantization_config): config.json belongs to other weights, or a "
                "file does"));
  }
}

}  // namespace

void use_model_names(HfFolder& folder, const ModelConfig& model) {
  take_prefixes_off(folder);
  if (model.quantized) folder.use_quantization(model.quantized->format);
  split_fused(folder, model);
  if (model.quantized) check_quantized(folder, model);
}

}  // namespace pesc
