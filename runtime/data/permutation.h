// A permutation of [0, n) that is computed, not stored: a Feistel network (Luby and Rackoff, 1988) on the
// smallest square power of two that holds n, walked along its cycle until it falls below n (Black and
// Rogaway, 2002; fewer than four steps on average). Its round function is Philox, so it is a pure function of
// (n, seed, stream, epoch).
#pragma once

#include <bit>
#include <cstdint>

#include "ops/core/check.h"
#include "ops/core/philox.h"

namespace pesc {

class Permutation {
 public:
  // `stream` tells apart the uses that one seed has. n in [1, 2^62].
  Permutation(int64_t n, uint64_t seed, uint32_t stream, int64_t epoch)
      : n_(static_cast<uint64_t>(n)), epoch_(static_cast<uint64_t>(epoch)), stream_(stream) {
    PESC_CHECK(n > 0 && n <= int64_t{1} << 62 && epoch >= 0 && stream < 1U << 24, "n ", n, " epoch ", epoch);
    half_bits_ = (std::bit_width(n_ - 1) + 1) / 2;
    if (half_bits_ == 0) half_bits_ = 1;
    // Masks and initial values are drawn with the plain seed as key.
    constexpr uint32_t kOrderKey = 0x6F726472;
    key_ = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32) ^ kOrderKey};
  }

  [[nodiscard]] int64_t operator()(int64_t index) const {
    auto value = static_cast<uint64_t>(index);
    PESC_CHECK(index >= 0 && value < n_, "index ", index, " of ", n_);
    do value = feistel(value);
    while (value >= n_);
    return static_cast<int64_t>(value);
  }

 private:
  [[nodiscard]] uint64_t feistel(uint64_t value) const {
    constexpr uint32_t kRounds = 6;
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    uint64_t left = value >> half_bits_;
    uint64_t right = value & mask;
    for (uint32_t round = 0; round < kRounds; ++round) {
      const PhiloxCounter bits = philox({static_cast<uint32_t>(right), stream_ << 8 | round,
                                         static_cast<uint32_t>(epoch_), static_cast<uint32_t>(epoch_ >> 32)},
                                        key_);
      const uint64_t mixed = left ^ (bits[0] & mask);
      left = right;
      right = mixed;
    }
    return left << half_bits_ | right;
  }

  uint64_t n_;
  uint64_t epoch_;
  uint32_t stream_;
  int half_bits_;
  PhiloxKey key_{};
};

}  // namespace pesc
