// Learning-rate schedules against their formulas.
#include "runtime/config/learning_rate.h"

#include <gtest/gtest.h>

#include <cmath>

namespace pesc {
namespace {

TEST(LearningRate, WarmUpRisesLinearlyToTheFullRate) {
  const LearningRate lr{
      .lr = 8e-4, .schedule = Schedule::kConstant, .warmup = 4, .total = 100, .min_ratio = 0};
  EXPECT_DOUBLE_EQ(lr.at(0), 2e-4);
  EXPECT_DOUBLE_EQ(lr.at(1), 4e-4);
  EXPECT_DOUBLE_EQ(lr.at(3), 8e-4);
  EXPECT_DOUBLE_EQ(lr.at(4), 8e-4);
  EXPECT_DOUBLE_EQ(lr.at(99), 8e-4);
}

TEST(LearningRate, LinearFallsToItsFloor) {
  const LearningRate lr{
      .lr = 1.0, .schedule = Schedule::kLinear, .warmup = 10, .total = 110, .min_ratio = 0.2};
  EXPECT_DOUBLE_EQ(lr.at(10), 1.0);
  EXPECT_DOUBLE_EQ(lr.at(60), 0.6);  // half way between 1 and 0.2
  EXPECT_NEAR(lr.at(109), 0.2 + 0.8 * 0.01, 1e-12);
  EXPECT_DOUBLE_EQ(lr.at(500), 0.2);
}

TEST(LearningRate, CosineFallsByHalfACosine) {
  const LearningRate lr{.lr = 2.0, .schedule = Schedule::kCosine, .warmup = 0, .total = 8, .min_ratio = 0.1};
  for (int step = 0; step < 8; ++step) {
    const double expected = 2.0 * (0.1 + 0.9 * 0.5 * (1 + std::cos(M_PI * step / 8)));
    EXPECT_NEAR(lr.at(step), expected, 1e-12) << step;
  }
  EXPECT_NEAR(lr.at(8), 0.2, 1e-12);
}

TEST(LearningRate, WarmUpAsLongAsTheRunNeverDividesByZero) {
  const LearningRate lr{.lr = 1.0, .schedule = Schedule::kLinear, .warmup = 5, .total = 5, .min_ratio = 0};
  EXPECT_DOUBLE_EQ(lr.at(4), 1.0);
  EXPECT_DOUBLE_EQ(lr.at(5), 1.0);
}

}  // namespace
}  // namespace pesc
