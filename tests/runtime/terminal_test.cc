// Text of a stranger on the terminal.
#include "runtime/terminal.h"

#include <gtest/gtest.h>

namespace pesc {
namespace {

TEST(TerminalText, ControlCharactersAndWhatIsNoUtf8AreEscaped) {
  EXPECT_EQ(terminal_text("plain, \xc3\xa9 and \xf0\x9f\x90\x9a"), "plain, \xc3\xa9 and \xf0\x9f\x90\x9a");
  EXPECT_EQ(terminal_text("x\x1b[31m\ny\x7f"), "x\\x1b[31m\\x0ay\\x7f");
  EXPECT_EQ(terminal_text("\xc2\x9b"
                          "31m"),
            "\\xc2\\x9b31m");  // CSI as one character
  EXPECT_EQ(terminal_text("caf\xe9"), "caf\\xe9");
  EXPECT_EQ(terminal_text("\xff\xc3"), "\\xff\\xc3");
  EXPECT_EQ(terminal_text(std::string("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(terminal_text("a\n\tb\r\x1b", Keep::kLines), "a\n\tb\\x0d\\x1b");
}

}  // namespace
}  // namespace pesc
