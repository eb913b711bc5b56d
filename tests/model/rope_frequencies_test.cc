// Inverse frequencies of the rope kinds against the published formulas, written out anew.
#include <gtest/gtest.h>

#include <cmath>

#include "model/attention_block.h"

namespace pesc {
namespace {

TEST(RopeFrequencies, DefaultIsAPowerOfTheta) {
  RopeConfig rope;
  rope.theta = 500000;
  const auto f = rope_inverse_frequencies(rope, 8);
  ASSERT_EQ(f.size(), 4U);
  for (int i = 0; i < 4; ++i)
    EXPECT_NEAR(f[static_cast<size_t>(i)] * std::pow(500000.0, i / 4.0), 1.0, 1e-12);
}

TEST(RopeFrequencies, LinearSlowsEveryOne) {
  RopeConfig rope;
  const auto plain = rope_inverse_frequencies(rope, 64);
  rope.kind = RopeKind::kLinear;
  rope.factor = 4;
  const auto slowed = rope_inverse_frequencies(rope, 64);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_DOUBLE_EQ(slowed[i], plain[i] / 4);
}

// The parameters of Llama 3.1: wavelengths below 8192/4 stay, above 8192/1 are slowed by 8, and between them
// the share kept rises from 0 to 1 with 8192/wavelength from 1 to 4.
TEST(RopeFrequencies, Llama3KeepsShortSlowsLongAndBlendsBetween) {
  RopeConfig rope;
  rope.theta = 500000;
  const auto plain = rope_inverse_frequencies(rope, 128);
  rope.kind = RopeKind::kLlama3;
  rope.factor = 8;
  rope.low_freq_factor = 1;
  rope.high_freq_factor = 4;
  rope.original_max_positions = 8192;
  const auto scaled = rope_inverse_frequencies(rope, 128);
  int kept = 0;
  int slowed = 0;
  int blended = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double wavelength = 2 * M_PI / plain[i];
    if (wavelength < 2048) {
      EXPECT_DOUBLE_EQ(scaled[i], plain[i]);
      ++kept;
    } else if (wavelength > 8192) {
      EXPECT_DOUBLE_EQ(scaled[i], plain[i] / 8);
      ++slowed;
    } else {
      const double keep = (8192 / wavelength - 1) / 3;
      EXPECT_NEAR(scaled[i], keep * plain[i] + (1 - keep) * plain[i] / 8, 1e-15);
      EXPECT_LT(scaled[i], plain[i]);
      EXPECT_GT(scaled[i], plain[i] / 8);
      ++blended;
    }
  }
  EXPECT_GT(kept, 10);
  EXPECT_GT(slowed, 10);
  EXPECT_GT(blended, 2);
}

}  // namespace
}  // namespace pesc
