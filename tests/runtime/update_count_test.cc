#include "runtime/update_count.h"

#include <gtest/gtest.h>

#include "ops/core/check.h"

namespace pesc {
namespace {

TEST(UpdateCountTest, CountsAcrossARestart) {
  UpdateCount count;
  EXPECT_TRUE(count.none());
  for (int i = 0; i < 3; ++i) count.count(false);
  EXPECT_TRUE(count.none());
  EXPECT_EQ(count.skipped_in_a_row(), 3);
  UpdateCount later;
  later.load(count.save(), 3);
  EXPECT_TRUE(later.none());
  EXPECT_EQ(later.skipped_in_a_row(), 3);
  later.count(true);
  EXPECT_FALSE(later.none());
  EXPECT_EQ(later.skipped_in_a_row(), 0);
}

TEST(UpdateCountTest, AnOlderCheckpointHasUpdatedInEveryStep) {
  UpdateCount count;
  count.load("", 5);
  EXPECT_FALSE(count.none());
  EXPECT_EQ(count.skipped_in_a_row(), 0);
  count.load("", 0);
  EXPECT_TRUE(count.none());
}

TEST(UpdateCountTest, DamageIsRefused) {
  for (const char* text : {"x", "1", "-1 0", "0 -1", "1 2 3", "9 0", "0 9"}) {
    UpdateCount count;
    EXPECT_THROW(count.load(text, 5), DataError) << text;
  }
}

}  // namespace
}  // namespace pesc
