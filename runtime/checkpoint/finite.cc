#include "runtime/checkpoint/finite.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "ops/core/check.h"

namespace pesc {
namespace {

constexpr uint32_t kExponent = 0x7f800000U;  // all ones in NaN and infinity, and in nothing else
constexpr int64_t kBlock = 4096;             // elements

uint32_t bits_at(const std::byte* bytes, int64_t element) {
  uint32_t bits = 0;
  std::memcpy(&bits, bytes + element * static_cast<int64_t>(sizeof(bits)), sizeof(bits));
  return bits;
}

}  // namespace

int64_t first_not_finite(std::span<const std::byte> bytes) {
  PESC_CHECK(bytes.size() % sizeof(float) == 0, bytes.size(), " bytes of float32");
  const auto n = static_cast<int64_t>(bytes.size() / sizeof(float));
  const std::byte* data = bytes.data();
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, n);
    uint32_t found = 0;  // no way out of this loop, so that it is made of vectors
    for (int64_t i = begin; i < end; ++i)
      found |= static_cast<uint32_t>((bits_at(data, i) & kExponent) == kExponent);
    if (found == 0) continue;
    for (int64_t i = begin; i < end; ++i)
      if ((bits_at(data, i) & kExponent) == kExponent) return i;
  }
  return -1;
}

float float_at(std::span<const std::byte> bytes, int64_t element) {
  return std::bit_cast<float>(bits_at(bytes.data(), element));
}

}  // namespace pesc
