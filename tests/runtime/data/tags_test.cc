#include "runtime/data/tags.h"

#include <gtest/gtest.h>

#include "runtime/data/share.h"
#include "runtime/text/utf8.h"

namespace pesc {
namespace {

TEST(Tags, OnlyTextWithoutControlCharactersIsPrintable) {
  for (const char* good :
       {"", "math", "two words", "caf\xC3\xA9", "\xE6\x97\xA5", "\xF0\x9F\x98\x80", "a\xC2\xA0z"})
    EXPECT_TRUE(is_printable(good)) << good;
  for (const char* bad : {"\xFF", "caf\xE9", "a\nb", "\x1B[31m", "\x7F", "\xC2\x9B", "a\t"}) {
    EXPECT_FALSE(is_printable(bad)) << bad;
    EXPECT_TRUE(is_printable(made_printable(bad))) << bad;
  }
}

TEST(Tags, WhatIsNotPrintableIsWrittenAsBytes) {
  EXPECT_EQ(made_printable("caf\xE9.x"), "caf\\xE9.x");
  EXPECT_EQ(made_printable("a\nb\x7F"), "a\\x0Ab\\x7F");
  EXPECT_EQ(made_printable("\xC2\x9Bm\xC3\xA9"), "\\xC2\\x9Bm\xC3\xA9");
  EXPECT_EQ(made_printable("\xE6\x97"), "\\xE6\\x97");
  EXPECT_EQ(made_printable("plain"), "plain");
  for (const std::string& piece : {std::string("\xFF"), std::string("\xE6\x97\xA5"), std::string("x")}) {
    std::string text;
    for (int i = 0; i < 100000; ++i) text += piece;
    const std::string made = made_printable(text);
    EXPECT_LT(made.size(), 300U);
    EXPECT_TRUE(is_printable(made)) << made;
    EXPECT_TRUE(made.ends_with("..."));
  }
}

TEST(Tags, TheSourceThenTheRowThenTheFile) {
  EXPECT_EQ(tag_of("s", "r", "/d/f.jsonl"), "s");
  EXPECT_EQ(tag_of("", "r", "/d/f.jsonl"), "r");
  EXPECT_EQ(tag_of("", "", "/d/f.jsonl"), "f");
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
