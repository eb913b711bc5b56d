// Drawing of tokens: greedy, temperature, nucleus.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "runtime/generator.h"

namespace pesc {
namespace {

SamplingOptions options(double temperature, double top_p) {
  SamplingOptions o;
  o.temperature = temperature;
  o.top_p = top_p;
  return o;
}

// The share of each token over a fine grid of uniform draws.
std::map<int32_t, double> shares(const std::vector<float>& logits, const SamplingOptions& o) {
  constexpr int kDraws = 20000;
  std::map<int32_t, double> count;
  for (int i = 0; i < kDraws; ++i) {
    const float u = (static_cast<float>(i) + 0.5F) / kDraws;
    count[sample_token(logits.data(), static_cast<int64_t>(logits.size()), o, u)] += 1.0 / kDraws;
  }
  return count;
}

TEST(Sampling, GreedyTakesTheLargestAndTheLowestAmongEquals) {
  const std::vector<float> logits{0.5F, 2.0F, -1.0F, 2.0F};
  EXPECT_EQ(sample_token(logits.data(), 4, options(0, 1), 0.99F), 1);
}

TEST(Sampling, WhatCannotComeIsNeverDrawn) {
  const float never = -std::numeric_limits<float>::infinity();
  const std::vector<float> logits{never, 0.1F, 0.3F, 0.2F, never, never};
  for (const double t : {0.0, 0.1, 1.0, 5.0}) {
    for (const float u : {0.0F, 0.5F, 0.99999994F}) {
      const int32_t token = sample_token(logits.data(), 6, options(t, 1), u);
      EXPECT_TRUE(token >= 1 && token <= 3) << t << " " << u << " " << token;
    }
  }
}

TEST(Sampling, SharesAreTheSoftmaxAtThatTemperature) {
  const std::vector<float> logits{0.0F, 1.0F, -2.0F};
  for (const double t : {0.5, 1.0, 3.0}) {
    const double z = std::exp(0 / t) + std::exp(1 / t) + std::exp(-2 / t);
    const auto share = shares(logits, options(t, 1));
    EXPECT_NEAR(share.at(0), std::exp(0 / t) / z, 1e-3);
    EXPECT_NEAR(share.at(1), std::exp(1 / t) / z, 1e-3);
    EXPECT_NEAR(share.count(2) != 0 ? share.at(2) : 0.0, std::exp(-2 / t) / z, 1e-3);
  }
}

TEST(Sampling, NucleusKeepsTheSmallestSetOfThatMass) {
  // Probabilities 0.5, 0.3, 0.2.
  const std::vector<float> logits{std::log(0.2F), std::log(0.5F), std::log(0.3F)};
  const auto two = shares(logits, options(1, 0.7));
  EXPECT_EQ(two.count(0), 0U);
  EXPECT_NEAR(two.at(1), 0.5 / 0.8, 1e-3);
  EXPECT_NEAR(two.at(2), 0.3 / 0.8, 1e-3);
  const auto one = shares(logits, options(1, 0.01));
  EXPECT_NEAR(one.at(1), 1.0, 1e-9);  // never empty
}

TEST(Sampling, HugeLogitsDoNotOverflow) {
  const std::vector<float> logits{3e38F, -3e38F, 3e38F};
  const auto share = shares(logits, options(0.1, 1));
  EXPECT_NEAR(share.at(0), 0.5, 1e-3);
  EXPECT_EQ(share.count(1), 0U);
}

}  // namespace
}  // namespace pesc
