// Conversions between the floating-point types of weight files and float32.
//
//   bfloat16  1 sign, 8 exponent, 7 mantissa bits: the upper half of a float32
//   float16   1 sign, 5 exponent (bias 15), 10 mantissa bits (IEEE 754 binary16)
//
// Widening is exact, and works on bits: subnormals, infinities and NaN payloads survive whatever the rounding
// and flush-to-zero modes are.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/core/bf16.h"
#include "ops/core/tensor.h"

namespace pesc {

[[nodiscard]] constexpr float f16_to_f32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1FU;
  const uint32_t mantissa = bits & 0x3FFU;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24, which is exact
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t wide = exponent == 0x1F ? 0xFFU : exponent + (127 - 15);
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

// True of the types that `convert_to_f32` takes: F32, BF16, F16.
[[nodiscard]] constexpr bool converts_to_f32(DType t) {
  return t == DType::kF32 || t == DType::kBF16 || t == DType::kF16;
}

// Converts from.size() / dtype_bytes(dtype) little-endian elements, at any alignment, into `to`.
void convert_to_f32(DType dtype, std::span<const std::byte> from, float* to);
// The index of the first element that is NaN or infinite; values.size() when there is none.
[[nodiscard]] size_t first_nonfinite(std::span<const float> values);
// Rounds `from` into as many bfloat16 values at `to`.
void convert_to_bf16(std::span<const float> from, uint16_t* to);

}  // namespace pesc
