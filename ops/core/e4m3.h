// FP8 E4M3 on the host (OCP 8-bit Floating Point Specification, 2023): 1 sign, 4 exponent (bias 7) and 3
// mantissa bits, subnormals, no infinities; 0x7F and 0xFF are NaN; the largest value is 448. And the scale of
// a row: a power of two, so that scaling rounds nothing.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace pesc {

inline constexpr float kLargestE4M3 = 448.0F;

[[nodiscard]] constexpr float e4m3_to_f32(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80U) << 24;
  const uint32_t low = code & 0x7FU;
  if (low == 0x7FU) return std::bit_cast<float>(sign | 0x7FC00000U);
  if (low < 8) {  // subnormal: a multiple of 2^-9
    const float magnitude = static_cast<float>(low) * 0x1p-9F;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | ((low << 20) + (120U << 23)));
}

// Rounds to nearest, ties to even; beyond 448 (infinity too) gives 448. A NaN gives 0x7F. As the conversion
// cvt.rn.satfinite.e4m3x2.f32 of a GPU.
[[nodiscard]] constexpr uint8_t f32_to_e4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80U);
  // Adding 2^14 leaves multiples of 2^-9 in the mantissa, rounded to nearest even.
  const float small = std::bit_cast<float>(std::min(magnitude, 0x3C800000U)) + 0x1p14F;
  const uint32_t subnormal = std::bit_cast<uint32_t>(small) & 0xFU;
  const uint32_t largest = std::min(magnitude, std::bit_cast<uint32_t>(kLargestE4M3));
  const uint32_t normal = ((largest + 0x7FFFFU + (largest >> 20 & 1U)) >> 20) - (120U << 3);
  const uint32_t code = magnitude < 0x3C800000U ? subnormal : normal;  // 2^-6 is the least normal value
  return magnitude > 0x7F800000U ? uint8_t{0x7F} : static_cast<uint8_t>(sign | code);
}

// The scale of a row whose largest magnitude is `largest`: the least power of two s with largest <= 448 s, but
// at least 2^-126, so that s and 1 / s are normal float32 values. 1 for a row of zeros; NaN where `largest` is
// not finite.
[[nodiscard]] constexpr float e4m3_scale(float largest) {
  const uint32_t bits = std::bit_cast<uint32_t>(largest);
  if (bits >= 0x7F800000U) return std::bit_cast<float>(0x7FC00000U);
  if (bits == 0) return 1.0F;
  // largest = m 2^e with 1 <= m < 2, and 448 = 1.75 2^8.
  const int biased = static_cast<int>(bits >> 23) - ((bits & 0x7FFFFFU) > 0x600000U ? 7 : 8);
  return std::bit_cast<float>(static_cast<uint32_t>(std::max(biased, 1)) << 23);
}

// 1 / scale, exactly, of a scale of e4m3_scale that is no NaN.
[[nodiscard]] constexpr float inverse_power_of_two(float scale) {
  return std::bit_cast<float>((254U << 23) - std::bit_cast<uint32_t>(scale));
}

}  // namespace pesc
