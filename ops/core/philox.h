// Philox4x32, the counter-based generator of Salmon et al. (SC'11): random bits as a pure function of a
// counter and a key, so that dropout masks and initial values do not depend on the layout. Ten rounds unless
// said otherwise; seven are the fewest that pass the paper's tests of randomness.
#pragma once

#include <array>
#include <cstdint>

namespace pesc {

using PhiloxCounter = std::array<uint32_t, 4>;
using PhiloxKey = std::array<uint32_t, 2>;

template <int kRounds = 10>
[[nodiscard]] constexpr PhiloxCounter philox(PhiloxCounter c, PhiloxKey k) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(p0)};
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return c;
}

// A float uniform in [0, 1) from 32 random bits (24 of them are used).
[[nodiscard]] constexpr float philox_uniform(uint32_t bits) {
  return static_cast<float>(bits >> 8) * (1.0F / 16777216.0F);
}

}  // namespace pesc
