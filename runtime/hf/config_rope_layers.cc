// The layers of config.json that rotate q and k. Of the families here only some leave layers out: those list a
// number for each layer in `no_rope_layers`, and in spite of its name 1 is a layer WITH rotary embedding.
#include <optional>
#include <vector>

#include "ops/core/check.h"
#include "runtime/hf/config_parts.h"

namespace pesc {
namespace {

// 0 or 1, as a number or in words.
std::optional<bool> flag(const nlohmann::json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value == 0 || value == 1) return value == 1;
  return std::nullopt;
}

std::vector<int64_t> read_list(const ConfigFields& fields, const nlohmann::json& list, int64_t layers) {
  if (!list.is_array())
    fields.fail("no_rope_layers", str_cat("must be a list of 0 and 1, not ", shown(list)));
  if (static_cast<int64_t>(list.size()) != layers) {
    fields.fail("no_rope_layers",
                str_cat("has ", list.size(), " numbers, and num_hidden_layers is ", layers,
                        "; it must have one for each layer, 1 for a layer with rotary embedding"));
  }
  std::vector<int64_t> without;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const nlohmann::json& value = list[static_cast<size_t>(layer)];
    const std::optional<bool> rotates = flag(value);
    if (!rotates)
      fields.fail("no_rope_layers", str_cat("must be a list of 0 and 1, but holds ", shown(value)));
    if (!*rotates) without.push_back(layer);
  }
  return without;
}

}  // namespace

std::vector<int64_t> read_layers_without_rope(const ConfigFields& fields, const FamilyTraits& traits,
                                              int64_t layers) {
  if (traits.rope_layers != RopeLayers::kListed) return {};  // other families' keys: refuse_unsupported
  const int64_t interval =
      fields.integer("no_rope_layer_interval", 1).value_or(traits.defaults.no_rope_layer_interval);
  const nlohmann::json* list = fields.find("no_rope_layers");
  return list != nullptr ? read_list(fields, *list, layers) : every_nth_layer(layers, interval);
}

}  // namespace pesc
