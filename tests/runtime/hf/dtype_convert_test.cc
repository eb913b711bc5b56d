// Every 16-bit value against its definition in double, and rounding to bfloat16 against the nearest of its
// neighbours.
#include "runtime/hf/dtype_convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace pesc {
namespace {

// sign * significand * 2^exponent by the IEEE 754 definition, for a format of these field widths.
double defined_value(uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int top = (1 << exponent_bits) - 1;
  const int exponent = (bits >> mantissa_bits) & top;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == top) return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

void expect_same(float got, double want, int bits) {
  if (std::isnan(want)) {
    ASSERT_TRUE(std::isnan(got)) << bits;
    return;
  }
  ASSERT_EQ(static_cast<double>(got), want) << bits;
  ASSERT_EQ(std::signbit(got), std::signbit(want)) << bits;
}

TEST(DtypeConvert, EveryHalfAndBfloat16) {
  for (int i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    expect_same(f16_to_f32(bits), defined_value(bits, 5, 10), i);
    expect_same(bf16_to_f32(bits), defined_value(bits, 8, 7), i);
  }
  EXPECT_EQ(f16_to_f32(0x3C00), 1.0F);
  EXPECT_EQ(f16_to_f32(0x0001), 0x1p-24F);
  EXPECT_EQ(f16_to_f32(0x7BFF), 65504.0F);
  EXPECT_EQ(bf16_to_f32(0xC049), -3.140625F);
}

TEST(DtypeConvert, Bfloat16SurvivesTheWayThereAndBack) {
  for (int i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const float value = bf16_to_f32(bits);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(value)))) << i;
    } else {
      ASSERT_EQ(f32_to_bf16(value), bits);
    }
  }
}

TEST(DtypeConvert, RoundsToNearestEven) {
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3F808000U)), 0x3F80);  // half way: to the even one, down
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3F818000U)), 0x3F82);  // half way: to the even one, up
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3F808001U)), 0x3F81);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3F817FFFU)), 0x3F81);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7F80);  // infinity
  EXPECT_EQ(f32_to_bf16(-std::numeric_limits<float>::infinity()), 0xFF80);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7F800001U)))));
  std::mt19937 random(7);
  for (int i = 0; i < 200000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (!std::isfinite(value) || std::abs(value) > 3e38F) continue;
    const uint16_t got = f32_to_bf16(value);
    const double error = std::abs(static_cast<double>(bf16_to_f32(got)) - value);
    for (const int step : {-1, 1}) {
      const double other = bf16_to_f32(static_cast<uint16_t>(got + step));
      if (std::isnan(other) || std::signbit(other) != std::signbit(value)) continue;
      ASSERT_LE(error, std::abs(other - value)) << value;
    }
  }
}

TEST(DtypeConvert, WholeRangesAtAnyAlignment) {
  const std::vector<uint16_t> half = {0x3C00, 0xC000, 0x0001, 0x7C00};
  const std::vector<float> want = {1.0F, -2.0F, 0x1p-24F, std::numeric_limits<float>::infinity()};
  std::vector<std::byte> bytes(1 + half.size() * 2);
  std::memcpy(bytes.data() + 1, half.data(), half.size() * 2);
  std::vector<float> got(4);
  convert_to_f32(DType::kF16, std::span(bytes).subspan(1), got.data());
  EXPECT_EQ(got, want);

  std::vector<std::byte> floats(1 + want.size() * 4);
  std::memcpy(floats.data() + 1, want.data(), want.size() * 4);
  got.assign(4, 0.0F);
  convert_to_f32(DType::kF32, std::span(floats).subspan(1), got.data());
  EXPECT_EQ(got, want);

  std::vector<uint16_t> narrow(4);
  convert_to_bf16(want, narrow.data());
  convert_to_f32(DType::kBF16, std::as_bytes(std::span(narrow)), got.data());
  EXPECT_EQ(got, want);
  EXPECT_THROW(convert_to_f32(DType::kI64, std::span(bytes).subspan(1), got.data()), InternalError);
  EXPECT_THROW(convert_to_f32(DType::kF16, bytes, got.data()), InternalError);  // 9 bytes
}

}  // namespace
}  // namespace pesc
