#include "runtime/data/tags.h"

#include <gtest/gtest.h>

#include "runtime/data/share.h"

namespace pesc {
namespace {

TEST(Tags, TheSourceThenTheRowThenTheFile) {
  EXPECT_EQ(tag_of("s", "r", "/d/f.jsonl"), "s");
  EXPECT_EQ(tag_of("", "r", "/d/f.jsonl"), "r");
  EXPECT_EQ(tag_of("", "", "/d/f.jsonl"), "f");
  EXPECT_EQ(tag_of("", "", "/d/f.jsonl.gz"), "f");
  EXPECT_EQ(tag_of("", "", "/d/f.1.json.zst"), "f.1");
  EXPECT_EQ(tag_of("", "", "/d/caf\xE9.jsonl"), "caf\\xE9");
  EXPECT_EQ(tag_of("", "a\nb", "f"),
            "a\\x0A"
            "b");
}

TEST(Share, IsTheNearestWholeNumberWithinRoundingElseTheNextAbove) {
  for (const auto& [share, whole, expected] : {std::tuple{0.07, 100, 7},
                                               {0.14, 100, 14},
                                               {0.55, 100, 55},
                                               {0.28, 25, 7},
                                               {0.29, 100, 29},
                                               {0.03, 100, 3},
                                               {0.03, 660, 20},
                                               {0.01, 11, 1},
                                               {1.0, 11, 11},
                                               {1.5, 11, 17},
                                               {1e-9, 3, 1},
                                               {0.0, 7, 0},
                                               {3.0, 7, 21},
                                               {0.1, 30, 3},
                                               {1e6, 1000, 1000000000}})
    EXPECT_EQ(share_of(share, whole), expected) << share << " of " << whole;
  for (int whole = 1; whole < 2000; ++whole) {
    for (int hundredths = 1; hundredths < 100; ++hundredths) {
      const int exact = hundredths * whole;
      EXPECT_EQ(share_of(hundredths / 100.0, whole), (exact + 99) / 100) << hundredths << " " << whole;
    }
  }
}

}  // namespace
}  // namespace pesc
