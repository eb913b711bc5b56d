// What counts as a loss spike, and that the window survives a checkpoint.
#include "runtime/loss_spike.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "ops/core/check.h"

namespace pesc {
namespace {

LossSpikes after(double ratio, int losses, double middle, double spread) {
  LossSpikes spikes(ratio);
  for (int i = 0; i < losses; ++i) spikes.add(middle + spread * std::sin(2.4 * i));
  return spikes;
}

TEST(LossSpikes, NeedsAPast) {
  EXPECT_FALSE(after(2, 15, 1.0, 0.01).is_spike(100));
  EXPECT_TRUE(after(2, 16, 1.0, 0.01).is_spike(100));
  EXPECT_FALSE(after(0, 100, 1.0, 0.01).is_spike(100));
}

TEST(LossSpikes, IsFarAboveTheMedianAndOutsideTheSpread) {
  const LossSpikes calm = after(2, 100, 1.0, 0.01);
  EXPECT_NEAR(calm.usual(), 1.0, 0.01);
  EXPECT_FALSE(calm.is_spike(1.9));  // below the ratio, however calm it was
  EXPECT_TRUE(calm.is_spike(2.1));
  const LossSpikes wild = after(2, 100, 1.0, 0.5);
  EXPECT_FALSE(wild.is_spike(2.1));  // within what happens here
  EXPECT_TRUE(wild.is_spike(9.0));
}

TEST(LossSpikes, FollowsAFallingLoss) {
  LossSpikes spikes(2);
  for (int i = 0; i < 300; ++i) {
    const double loss = 8 * std::exp(-0.02 * i);
    EXPECT_FALSE(spikes.is_spike(loss)) << i;
    spikes.add(loss);
  }
  EXPECT_TRUE(spikes.is_spike(4));
}

TEST(LossSpikes, SurvivesACheckpoint) {
  const LossSpikes before = after(2, 100, 1.0, 0.3);
  LossSpikes resumed(2);
  resumed.load(before.save());
  EXPECT_EQ(resumed.save(), before.save());
  EXPECT_EQ(resumed.usual(), before.usual());
  for (double loss = 1; loss < 9; loss += 0.01) ASSERT_EQ(resumed.is_spike(loss), before.is_spike(loss));
  EXPECT_THROW(resumed.load("123"), DataError);
  EXPECT_THROW(resumed.load(std::string(8 * 65, 'x')), DataError);
}

}  // namespace
}  // namespace pesc
