// The best interval between saves: against the model itself, against a simulation, and at its limits.
#include "runtime/checkpoint_interval.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace pesc {
namespace {

TEST(CheckpointInterval, IsTheOneOfTheHighestGoodput) {
  for (const double mtbf : {600.0, 3600.0, 40000.0, 3e6}) {
    for (const double save : {0.1, 2.0, 60.0}) {
      const FailureCosts costs{mtbf, save, 100};
      const double best = best_save_interval(costs);
      // Of a fine grid around it none is better by more than Daly's estimate is off.
      double highest = 0, at = 0;
      for (double interval = best / 4; interval < 4 * best; interval *= 1.001) {
        if (goodput(costs, interval) <= highest) continue;
        highest = goodput(costs, interval);
        at = interval;
      }
      EXPECT_NEAR(best / at, 1, 0.02) << "mtbf " << mtbf << ", save " << save;
      EXPECT_GE(goodput(costs, best), highest * (1 - 1e-4));
    }
  }
}

TEST(CheckpointInterval, IsYoungsWhereFailuresAreRare) {
  EXPECT_NEAR(best_save_interval({1e6, 0.5, 10}) / std::sqrt(2 * 0.5 * 1e6), 1, 1e-3);
  EXPECT_GT(best_save_interval({1e6, 1, 10}), best_save_interval({1e6, 0.5, 10}));
  EXPECT_GT(best_save_interval({2e6, 0.5, 10}), best_save_interval({1e6, 0.5, 10}));
  EXPECT_EQ(best_save_interval({1e6, 0, 10}), 0);      // free: as often as possible
  EXPECT_EQ(best_save_interval({100, 500, 10}), 100);  // hopeless: the time between failures
}

// Failures come at any time, also in saves and restarts, which then begin again.
double simulated_goodput(const FailureCosts& c, double interval, double useful, unsigned seed) {
  std::mt19937_64 gen(seed);
  std::exponential_distribution<double> next(1 / c.mtbf);
  double wall = 0, done = 0, failure = next(gen);
  const auto pass = [&](double seconds) {  // whether nothing fails for so long
    if (wall + seconds <= failure) return wall += seconds, true;
    wall = failure;
    failure += next(gen);
    return false;
  };
  while (done < useful) {
    if (pass(interval + c.save)) {
      done += interval;
    } else {
      while (!pass(c.restart)) continue;
    }
  }
  return done / wall;
}

TEST(CheckpointInterval, GoodputIsThatOfARunWithRandomFailures) {
  for (const FailureCosts costs : {FailureCosts{1000, 5, 30}, FailureCosts{300, 20, 100}}) {
    for (const double share : {0.3, 1.0, 3.0}) {
      const double interval = share * best_save_interval(costs);
      EXPECT_NEAR(simulated_goodput(costs, interval, 3e6, 7), goodput(costs, interval), 0.015)
          << costs.mtbf << " " << interval;
    }
  }
  EXPECT_NEAR(goodput({1e12, 0, 10}, 100), 1, 1e-6);
}

}  // namespace
}  // namespace pesc
