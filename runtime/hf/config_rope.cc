// The rope dictionaries of config.json. What the keys do is taken from transformers (modeling_rope_utils):
//
//   default  nothing but rope_theta
//   linear   positions are divided by `factor`
//   llama3   frequencies below low_freq_factor are divided by `factor`, those above high_freq_factor stay,
//   and
//            between them the two are blended, measured by original_max_position_embeddings
//
// transformers warns of keys that a kind does not know and goes on without them. Here they are refused,
// because whoever wrote them meant another result.
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <span>
#include <string_view>

#include "ops/core/check.h"
#include "runtime/hf/config_parts.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using namespace std::string_view_literals;

// Keys of every kind. attention_factor and (without a kind that scales) factor are for values that change
// nothing.
constexpr std::array kCommon = {"type"sv, "rope_type"sv, "rope_theta"sv, "partial_rotary_factor"sv,
                                "attention_factor"sv};
// The original length changes nothing in the first two.
constexpr std::array kDefaultKeys = {"factor"sv, "original_max_position_embeddings"sv};
constexpr std::array kLinearKeys = {"factor"sv, "original_max_position_embeddings"sv};
constexpr std::array kLlama3Keys = {"factor"sv, "low_freq_factor"sv, "high_freq_factor"sv,
                                    "original_max_position_embeddings"sv};

bool has_key(std::span<const std::string_view> keys, std::string_view key) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

std::string key_list(std::span<const std::string_view> keys) {
  std::string out;
  for (const std::string_view key : keys) out += str_cat(out.empty() ? "" : ", ", key);
  return out;
}

void refuse_nested(const ConfigFields& fields) {
  for (const auto& [key, value] : fields.object_items()) {
    if (!value.is_object()) continue;
    fields.fail(
        key.c_str(),
        "is a dictionary inside the dictionary, as models with one rope for each layer type have them; "
        "that is not supported, only one rope for all layers is");
  }
}

// The kind that `rope_type`, or `type` as older files say, names; both must agree.
std::string read_kind(const ConfigFields& fields, const FamilyTraits& traits) {
  const std::optional<std::string> kind = fields.string("rope_type");
  const std::optional<std::string> old_kind = fields.string("type");
  if (kind && old_kind && *kind != *old_kind) {
    fields.fail("type", str_cat(in_quotes(*old_kind), " contradicts rope_type ", in_quotes(*kind),
                                "; they are two spellings of one setting"));
  }
  if (kind || old_kind) return kind ? *kind : *old_kind;
  for (const auto& [key, value] : fields.object_items()) {
    if (value.is_null() || key == "rope_theta" || key == "partial_rotary_factor") continue;
    fields.fail("rope_type",
                str_cat("is missing, but ", in_quotes(key), " stands in the dictionary; say which of ",
                        rope_kind_names(traits.rope_kinds), " is meant, or take ", in_quotes(key), " out"));
  }
  return "default";
}

void refuse_other_keys(const ConfigFields& fields, const std::string& kind,
                       std::span<const std::string_view> keys) {
  for (const auto& [key, value] : fields.object_items()) {
    if (value.is_null() || has_key(kCommon, key) || has_key(keys, key)) continue;
    fields.fail(key.c_str(),
                str_cat("is no key of the rope kind '", kind, "', whose keys are ", key_list(keys),
                        "; it would have no effect here, so take it out if the result is right "
                        "without it"));
  }
}

void require_one(const ConfigFields& fields, const char* key, const char* why) {
  if (fields.positive(key).value_or(1.0) != 1.0) fields.fail(key, why);
}

double read_factor(const ConfigFields& fields) {
  const double factor = fields.required_positive("factor");
  if (factor < 1) fields.fail("factor", str_cat("is ", factor, "; a factor below 1 is not supported"));
  return factor;
}

void read_llama3(const ConfigFields& fields, int64_t max_positions, RopeConfig& rope) {
  rope.kind = RopeKind::kLlama3;
  rope.factor = read_factor(fields);
  rope.low_freq_factor = fields.required_positive("low_freq_factor");
  rope.high_freq_factor = fields.required_positive("high_freq_factor");
  rope.original_max_positions = fields.required_integer("original_max_position_embeddings", 1);
  if (rope.low_freq_factor >= rope.high_freq_factor) {
    fields.fail("low_freq_factor", str_cat("must be below high_freq_factor, but they are ",
                                           rope.low_freq_factor, " and ", rope.high_freq_factor));
  }
  if (rope.original_max_positions > max_positions) {
    fields.fail("original_max_position_embeddings",
                str_cat(rope.original_max_positions, " is above max_position_embeddings ", max_positions));
  }
}

// The rope of one dictionary: `rope_parameters` or `rope_scaling`. Its own rope_theta, if any, goes into
// `theta`.
RopeConfig read_dictionary(const ConfigFields& fields, const FamilyTraits& traits, int64_t max_positions,
                           std::optional<double>& theta) {
  RopeConfig rope;
  refuse_nested(fields);
  const std::string name = read_kind(fields, traits);
  theta = fields.positive("rope_theta");
  const auto kind = std::ranges::find(traits.rope_kinds, name, rope_kind_name);
  if (kind == traits.rope_kinds.end()) {
    refuse_beyond_row(fields, fields.has("rope_type") ? "rope_type" : "type",
                      str_cat("the rope kind ", in_quotes(name)), traits, rope_kind_names(traits.rope_kinds));
  }
  switch (*kind) {
    case RopeKind::kDefault:
      refuse_other_keys(fields, name, kDefaultKeys);
      require_one(fields, "factor",
                  "the rope kind 'default' does not scale; say rope_type linear if it should");
      break;
    case RopeKind::kLinear:
      refuse_other_keys(fields, name, kLinearKeys);
      rope.kind = RopeKind::kLinear;
      rope.factor = read_factor(fields);
      break;
    case RopeKind::kLlama3:
      refuse_other_keys(fields, name, kLlama3Keys);
      read_llama3(fields, max_positions, rope);
      break;
  }
  require_one(fields, "attention_factor", "a scaled attention is not supported; only 1 is");
  require_one(fields, "partial_rotary_factor", "a partly rotated head is not supported; only 1 is");
  return rope;
}

bool same_kind(const RopeConfig& a, const RopeConfig& b) {
  return a.kind == b.kind && a.factor == b.factor && a.low_freq_factor == b.low_freq_factor &&
         a.high_freq_factor == b.high_freq_factor && a.original_max_positions == b.original_max_positions;
}

}  // namespace

// Both spellings may stand in one file (this project writes both), but not contradict each other.
RopeConfig read_rope(const ConfigFields& fields, const FamilyTraits& traits, int64_t max_positions) {
  require_one(fields, "partial_rotary_factor", "a partly rotated head is not supported; only 1 is");
  // Spellings of other programs would otherwise be passed over.
  for (const auto& [key, value] : fields.object_items()) {
    const std::string_view name = key;
    const bool of_rope = name.starts_with("rope_") || name.starts_with("rotary_") || name == "scale_rope";
    if (!of_rope || value.is_null() || name == "rope_theta" || name == "rope_scaling" ||
        name == "rope_parameters")
      continue;
    if (value == false || ((name == "rotary_pct" || name == "rotary_percent") && value == 1)) continue;
    fields.fail(key.c_str(),
                "is not read here; say what it means with rope_theta and rope_scaling, or take it out");
  }
  std::optional<double> theta = fields.positive("rope_theta");
  std::optional<RopeConfig> rope;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const std::optional<ConfigFields> dictionary = fields.object(key);
    if (!dictionary) continue;
    std::optional<double> own_theta;
    const RopeConfig read = read_dictionary(*dictionary, traits, max_positions, own_theta);
    if (rope && !same_kind(*rope, read)) fields.fail(key, "contradicts rope_parameters");
    rope = read;
    if (theta && own_theta && *theta != *own_theta) {
      fields.fail(key,
                  str_cat("rope_theta ", *own_theta, " contradicts the file's other rope_theta, ", *theta));
    }
    if (own_theta) theta = own_theta;
  }
  RopeConfig out = rope.value_or(RopeConfig{});
  out.theta = theta.value_or(traits.defaults.rope_theta);
  return out;
}

}  // namespace pesc
