// Ranges of numbers that an experiment may give.
#include "runtime/config/field_checker.h"

#include <gtest/gtest.h>

#include <limits>

namespace pesc {
namespace {

// A number that float32 rounds to 0 or to infinity would be accepted and not be what is computed with.
TEST(FieldChecker, NumbersMustBeOnesOfFloat32) {
  const FieldPlaces places;
  const FieldChecker check(places);
  for (const double good : {1e-8, 1e-37, 3e38, 2.0}) {
    check.positive("f", good);
    check.not_negative("f", good);
    check.in_float32("f", -good);
  }
  check.not_negative("f", 0.0);
  check.not_negative("f", -0.0);
  for (const double bad : {1e-320, 1e-46, 1e39, 1e300, -1e-46, -1e39, std::numeric_limits<double>::infinity(),
                           std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THROW(check.positive("f", bad), UsageError) << bad;
    EXPECT_THROW(check.not_negative("f", bad), UsageError) << bad;
    EXPECT_THROW(check.in_float32("f", bad), UsageError) << bad;
  }
}

}  // namespace
}  // namespace pesc
