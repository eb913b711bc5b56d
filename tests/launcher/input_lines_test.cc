// Lines of an input as they come: whole, in parts, without an end, and when none comes.
#include "launcher/input_lines.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "ops/core/check.h"

namespace pesc {
namespace {

class InputLinesTest : public testing::Test {
 protected:
  InputLinesTest() { EXPECT_EQ(::pipe(ends_.data()), 0); }
  ~InputLinesTest() override {
    ::close(ends_[0]);
    if (ends_[1] >= 0) ::close(ends_[1]);
  }
  void write(std::string_view text) {
    ASSERT_EQ(::write(ends_[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  void close() {
    ::close(ends_[1]);
    ends_[1] = -1;
  }
  std::array<int, 2> ends_{};
};

TEST_F(InputLinesTest, LinesComeOneByOne) {
  InputLines lines(ends_[0]);
  write("one\ntwo\r\n\nthr");
  EXPECT_EQ(lines.next(10), "one");
  EXPECT_EQ(lines.next(10), "two");
  EXPECT_EQ(lines.next(10), "");
  EXPECT_EQ(lines.next(0), std::nullopt);  // half a line
  EXPECT_FALSE(lines.ended());
  write("ee\nfour");
  EXPECT_EQ(lines.next(10), "three");
  close();
  EXPECT_EQ(lines.next(10), "four");  // without an end
  EXPECT_EQ(lines.next(10), std::nullopt);
  EXPECT_TRUE(lines.ended());
}

TEST_F(InputLinesTest, AnEmptyInputEnds) {
  InputLines lines(ends_[0]);
  EXPECT_EQ(lines.next(0), std::nullopt);
  EXPECT_FALSE(lines.ended());
  close();
  EXPECT_EQ(lines.next(10), std::nullopt);
  EXPECT_TRUE(lines.ended());
}

TEST(InputLines, WhatCannotBeReadIsAnError) {
  InputLines folder(::open("/", O_RDONLY));
  EXPECT_THROW((void)folder.next(1), IoError);
}

TEST(InputLines, ALineWithoutEndIsRefusedInBoundedMemory) {
  const int zeros = ::open("/dev/zero", O_RDONLY);
  ASSERT_GE(zeros, 0);
  InputLines lines(zeros);
  EXPECT_THROW((void)lines.next(10), DataError);
  ::close(zeros);
}

}  // namespace
}  // namespace pesc
