// Reads a normalizer, pre-tokenizer, post-processor or decoder of a tokenizer.json: {"type": "Split", ...}.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {

// Throws DataError where the component has no type.
[[nodiscard]] inline std::string component_type(const nlohmann::json& json, const char* kind) {
  if (!json.is_object() || !json.contains("type") || !json["type"].is_string())
    throw DataError(str_cat(kind, ": is no object with a \"type\""));
  return json["type"].get<std::string>();
}

struct Component {
  const nlohmann::json& json;
  const char* kind;
  const std::string& type;

  [[noreturn]] void refuse(const std::string& what) const {
    throw DataError(str_cat(kind, " ", printable(type), ": ", what));
  }
  [[noreturn]] void refuse_type(std::string_view supported) const {
    refuse(str_cat("is not supported; supported are ", supported));
  }
  // `others`: the components of this kind before this one. A text passes through all of them, each calling the next.
  void check_count(size_t others) const {
    constexpr size_t kMost = 64;
    if (others >= kMost)
      refuse(str_cat("is one of more than ", kMost, " in a sequence; at most ", kMost, " are supported"));
  }
  void check_depth(int depth) const {
    if (depth > 8) refuse("sequences are nested too deep");
  }
  [[nodiscard]] const nlohmann::json& at(const char* field) const {
    if (!json.contains(field)) refuse(str_cat("has no \"", field, "\""));
    return json[field];
  }
  [[nodiscard]] const nlohmann::json& array(const char* field) const {
    if (!at(field).is_array()) refuse(str_cat("\"", field, "\" is no array"));
    return json[field];
  }
  [[nodiscard]] std::string text(const char* field) const {
    if (!at(field).is_string()) refuse(str_cat("\"", field, "\" is no string"));
    return json[field].get<std::string>();
  }
  [[nodiscard]] bool boolean(const char* field) const {
    if (!at(field).is_boolean()) refuse(str_cat("\"", field, "\" is neither true nor false"));
    return json[field].get<bool>();
  }
  [[nodiscard]] bool boolean(const char* field, bool otherwise) const {
    return json.contains(field) && !json[field].is_null() ? boolean(field) : otherwise;
  }
  [[nodiscard]] size_t count(const char* field) const {
    if (!at(field).is_number_unsigned() || json[field].get<uint64_t>() > 1'000'000)
      refuse(str_cat("\"", field, "\" is no number from 0 to 1000000"));
    return json[field].get<size_t>();
  }
};

}  // namespace pesc
