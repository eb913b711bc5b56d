// The sliding window of config.json. Families say in different keys which layers have one.
#include <optional>
#include <string>
#include <vector>

#include "ops/core/check.h"
#include "runtime/hf/config_parts.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

// Whether layer_types names a layer with a sliding window; nothing where the key is absent.
std::optional<bool> names_sliding_layers(const ConfigFields& fields, const FamilyTraits& traits,
                                         int64_t layers) {
  const std::optional<std::vector<std::string>> types = fields.strings("layer_types");
  if (!types) return std::nullopt;
  if (static_cast<int64_t>(types->size()) != layers) {
    fields.fail("layer_types",
                str_cat("names ", types->size(), " layers, and num_hidden_layers is ", layers));
  }
  bool some_layer = false;
  for (const std::string& type : *types) {
    if (type != "full_attention" && type != "sliding_attention") {
      refuse_beyond_row(fields, "layer_types", str_cat("the layer type ", in_quotes(type)), traits,
                        "full_attention, sliding_attention");
    }
    some_layer = some_layer || type == "sliding_attention";
  }
  return some_layer;
}

}  // namespace

int64_t read_sliding_window(const ConfigFields& fields, const FamilyTraits& traits,
                            const ModelConfig& model) {
  const int64_t layers = model.num_hidden_layers;
  const std::optional<bool> sliding = names_sliding_layers(fields, traits, layers);
  const bool used = fields.boolean("use_sliding_window").value_or(false);
  if (traits.window_layers == WindowLayers::kNone) {
    // The family has no window, so that sliding_window alone means nothing; but a file may say that it is
    // used.
    if (!used && !sliding.value_or(false)) return 0;
    return fields.integer("sliding_window", 1).value_or(0);
  }
  // Here null and absent differ: null means no window.
  const int64_t window = fields.absent("sliding_window") ? traits.defaults.sliding_window
                                                         : fields.integer("sliding_window", 1).value_or(0);
  if (traits.window_layers == WindowLayers::kAll) return window;

  if (sliding.value_or(false) && !used)
    fields.fail("layer_types", "names sliding_attention, but use_sliding_window is not true");
  if (traits.window_layers == WindowLayers::kWithoutRope)
    return used && sliding.value_or(!model.layers_without_rope.empty()) ? window : 0;
  const int64_t from = fields.integer("max_window_layers", 0).value_or(traits.defaults.max_window_layers);
  return used && sliding.value_or(from < layers) ? window : 0;
}

}  // namespace pesc
