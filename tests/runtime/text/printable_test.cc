// Text of a stranger in messages and on the terminal.
#include "runtime/text/printable.h"

#include <gtest/gtest.h>

#include "runtime/text/utf8.h"

namespace pesc {
namespace {

TEST(Printable, OnlyTextWithoutControlCharactersIs) {
  for (const char* good :
       {"", "math", "two words", "caf\xC3\xA9", "\xE6\x97\xA5", "\xF0\x9F\x98\x80", "a\xC2\xA0z"})
    EXPECT_TRUE(is_printable(good)) << good;
  for (const char* bad : {"\xFF", "caf\xE9", "a\nb", "\x1B[31m", "\x7F", "\xC2\x9B", "a\t", "\xC3"}) {
    EXPECT_FALSE(is_printable(bad)) << bad;
    EXPECT_TRUE(is_printable(printable(bad))) << bad;
  }
}

TEST(Printable, ControlCharactersAndWhatIsNoUtf8AreWrittenAsBytes) {
  EXPECT_EQ(printable("plain, \xC3\xA9 and \xF0\x9F\x90\x9A"), "plain, \xC3\xA9 and \xF0\x9F\x90\x9A");
  EXPECT_EQ(printable("x\x1B[31m\ny\x7F"), "x\\x1B[31m\\x0Ay\\x7F");
  EXPECT_EQ(printable("\xC2\x9B"
                      "31m"),
            "\\xC2\\x9B31m");  // CSI as one character
  EXPECT_EQ(printable("caf\xE9.x"), "caf\\xE9.x");
  EXPECT_EQ(printable("\xFF\xC3"), "\\xFF\\xC3");
  EXPECT_EQ(printable("\xE6\x97"), "\\xE6\\x97");
  EXPECT_EQ(printable(std::string("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(printable("a\n\tb\r\x1B", kUncut, Keep::kLines), "a\n\tb\\x0D\\x1B");
}

TEST(Printable, LongTextsAreCutBetweenCharacters) {
  for (const std::string& piece : {std::string("\xFF"), std::string("\xE6\x97\xA5"), std::string("x")}) {
    std::string text;
    for (int i = 0; i < 100000; ++i) text += piece;
    const std::string made = printable(text);
    EXPECT_LE(made.size(), 256U + 3U);
    EXPECT_TRUE(is_printable(made)) << made;
    EXPECT_TRUE(made.ends_with("..."));
    EXPECT_GE(printable(text, kUncut).size(), text.size());
    EXPECT_FALSE(printable(text, kUncut).ends_with("..."));
  }
  EXPECT_EQ(printable("12345678", 8), "12345678");
  EXPECT_EQ(printable("123456789", 8), "12345678...");
  EXPECT_EQ(printable("1234567\xC3\xA9", 8), "1234567...");
}

TEST(Printable, QuotesStandAroundWhatWasCut) {
  EXPECT_EQ(in_quotes("a\x1B[2J\n"), "'a\\x1B[2J\\x0A'");
  EXPECT_EQ(in_quotes("abcdef", 3), "'abc...'");
  EXPECT_LT(in_quotes(std::string(1'000'000, 'n')).size(), 200U);
}

TEST(PrintableUtf8, FirstCharacterIsItsNumberOfBytes) {
  EXPECT_EQ(first_character(""), 0U);
  EXPECT_EQ(first_character("ab"), 1U);
  EXPECT_EQ(first_character("\xC3\xA9x"), 2U);
  EXPECT_EQ(first_character("\xE6\x97\xA5"), 3U);
  EXPECT_EQ(first_character("\xF0\x9F\x98\x80z"), 4U);
  for (const char* none : {"\xC3", "\xFF", "\xA9", "\xE6\x97", "\xC0\x80"})
    EXPECT_EQ(first_character(none), 0U);
}

}  // namespace
}  // namespace pesc
