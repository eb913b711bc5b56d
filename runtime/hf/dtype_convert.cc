#include "runtime/hf/dtype_convert.h"

#include <algorithm>
#include <cstring>

namespace pesc {
namespace {

template <class Convert>
void widen(std::span<const std::byte> from, float* to, Convert convert) {
  const size_t n = from.size() / sizeof(uint16_t);
  for (size_t i = 0; i < n; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, from.data() + i * sizeof(bits), sizeof(bits));
    to[i] = convert(bits);
  }
}

}  // namespace

void convert_to_f32(DType dtype, std::span<const std::byte> from, float* to) {
  static_assert(std::endian::native == std::endian::little, "weight files are little-endian");
  PESC_CHECK(converts_to_f32(dtype), "no conversion from ", dtype_name(dtype));
  PESC_CHECK(from.size() % static_cast<size_t>(dtype_bytes(dtype)) == 0, from.size(), " bytes of ",
             dtype_name(dtype));
  if (from.empty()) return;
  if (dtype == DType::kF32) {
    std::memcpy(to, from.data(), from.size());
  } else if (dtype == DType::kBF16) {
    widen(from, to, bf16_to_f32);
  } else {
    widen(from, to, f16_to_f32);
  }
}

size_t first_nonfinite(std::span<const float> values) {
  const auto nonfinite = [](float value) {
    return ((std::bit_cast<uint32_t>(value) >> 23) & 0xFFU) == 0xFFU;
  };
  constexpr size_t kBlock = 4096;
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    const std::span<const float> block = values.subspan(begin, std::min(kBlock, values.size() - begin));
    uint32_t found = 0;  // without a branch, so that the loop is vectorised
    for (const float value : block) found |= static_cast<uint32_t>(nonfinite(value));
    if (found == 0) continue;
    return begin + static_cast<size_t>(std::find_if(block.begin(), block.end(), nonfinite) - block.begin());
  }
  return values.size();
}

void convert_to_bf16(std::span<const float> from, uint16_t* to) {
  for (size_t i = 0; i < from.size(); ++i) to[i] = f32_to_bf16(from[i]);
}

}  // namespace pesc
