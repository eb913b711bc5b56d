// bfloat16 on the host: 1 sign, 8 exponent, 7 mantissa bits, the upper half of a float32. Works on bits:
// subnormals, infinities and NaN payloads survive whatever the rounding and flush-to-zero modes are.
#pragma once

#include <bit>
#include <cstdint>

namespace pesc {

[[nodiscard]] constexpr float bf16_to_f32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Rounds to nearest, ties to even; beyond the largest finite value gives infinity. A NaN stays one (made
// quiet).
[[nodiscard]] constexpr uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace pesc
