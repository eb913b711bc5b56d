#include "runtime/hf/config_fields.h"

#include <cmath>
#include <utility>

#include "ops/core/check.h"
#include "runtime/hf/safetensors.h"
#include "runtime/text/printable.h"

namespace pesc {

std::string shown(const nlohmann::json& value) {
  if (value.is_structured()) return value.is_array() ? "a list" : "an object";
  return in_quotes(value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
}

ConfigFields::ConfigFields(const nlohmann::json& object, std::string where)
    : object_(&object), where_(std::move(where)) {
  if (!object.is_object()) throw DataError(str_cat(where_, ": must be a JSON object, not ", shown(object)));
}

void ConfigFields::fail(const char* key, const std::string& what) const {
  throw DataError(str_cat(where_, ": ", key, ": ", what));
}

const nlohmann::json* ConfigFields::find(const char* key) const {
  const auto it = object_->find(key);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

std::optional<int64_t> ConfigFields::integer(const char* key, int64_t low) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return std::nullopt;
  const bool whole = value->is_number_integer();
  const bool fits = whole && (value->is_number_unsigned() ? value->get<uint64_t>() <= uint64_t{kMaxInteger}
                                                          : value->get<int64_t>() <= kMaxInteger);
  if (!fits || value->get<int64_t>() < low) {
    fail(key, str_cat("must be a whole number from ", low, " to ", kMaxInteger, ", not ", shown(*value)));
  }
  return value->get<int64_t>();
}

int64_t ConfigFields::required_integer(const char* key, int64_t low) const {
  const std::optional<int64_t> value = integer(key, low);
  if (!value) fail(key, "is missing; give the config.json that belongs to the model");
  return *value;
}

std::optional<double> ConfigFields::positive(const char* key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number() || !std::isfinite(value->get<double>()) || value->get<double>() <= 0) {
    fail(key, str_cat("must be a number above zero, not ", shown(*value)));
  }
  return value->get<double>();
}

double ConfigFields::required_positive(const char* key) const {
  const std::optional<double> value = positive(key);
  if (!value) fail(key, "is missing; give the config.json that belongs to the model");
  return *value;
}

std::optional<bool> ConfigFields::boolean(const char* key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) fail(key, str_cat("must be true or false, not ", shown(*value)));
  return value->get<bool>();
}

std::optional<std::string> ConfigFields::string(const char* key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) fail(key, str_cat("must be a string, not ", shown(*value)));
  return value->get<std::string>();
}

std::optional<std::vector<std::string>> ConfigFields::strings(const char* key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array()) fail(key, str_cat("must be a list of strings, not ", shown(*value)));
  std::vector<std::string> out;
  for (const nlohmann::json& item : *value) {
    if (!item.is_string()) fail(key, str_cat("must be a list of strings, but holds ", shown(item)));
    out.push_back(item.get<std::string>());
  }
  return out;
}

std::optional<ConfigFields> ConfigFields::object(const char* key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return ConfigFields(*value, str_cat(where_, ": ", key));
}

}  // namespace pesc
