// The element types of the safetensors format and their sizes (safetensors 0.7, `Dtype`). A file is parsed
// whatever types it holds; whether a tensor's type can be used is decided when that tensor is read.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "ops/core/tensor.h"

namespace pesc {

struct SafetensorsType {
  std::string_view name;
  uint64_t bits;  // of one element
};

inline constexpr std::array<SafetensorsType, 22> kSafetensorsTypes = {{
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
}};

// Null when the format has no such type, or not yet.
[[nodiscard]] inline const SafetensorsType* safetensors_type(std::string_view name) {
  const auto* it = std::find_if(kSafetensorsTypes.begin(), kSafetensorsTypes.end(),
                                [&](const SafetensorsType& t) { return t.name == name; });
  return it == kSafetensorsTypes.end() ? nullptr : &*it;
}

// The type of ours that it is, if it is one.
[[nodiscard]] inline std::optional<DType> dtype_of(std::string_view name) {
  for (const DType t :
       {DType::kF64, DType::kF32, DType::kF16, DType::kBF16, DType::kI64, DType::kI32, DType::kU8}) {
    if (name == dtype_name(t)) return t;
  }
  return std::nullopt;
}

}  // namespace pesc
