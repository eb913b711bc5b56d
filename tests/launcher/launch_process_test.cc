#include "launcher/launch_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <optional>

namespace pesc {
namespace {

using Lines = std::deque<std::string>;

TEST(TagFilter, PartsLinesByRank) {
  TagFilter f;
  EXPECT_EQ(f.take("[1,0]<stderr>:a\n[1,12]<stderr>:b\nmpirun noticed\n[1,0]<stdout>:c\n"),
            "a\nb\nmpirun noticed\nc\n");
  EXPECT_EQ(f.last_lines().at(0), (Lines{"a", "c"}));
  EXPECT_EQ(f.last_lines().at(12), Lines{"b"});
  EXPECT_EQ(f.last_lines().at(kMpirunItself), Lines{"mpirun noticed"});
}

TEST(TagFilter, ATagMayComeInPieces) {
  const std::string text = "[1,3]<stderr>:one\n[1,4]<stderr>:two\n[1,3]<stderr>:[1,2] is no tag\n[9]\n";
  for (size_t piece = 1; piece < text.size(); ++piece) {
    TagFilter f;
    std::string out;
    for (size_t at = 0; at < text.size(); at += piece) out += f.take(text.substr(at, piece));
    EXPECT_EQ(out + f.flush(), "one\ntwo\n[1,2] is no tag\n[9]\n") << piece;
    EXPECT_EQ(f.last_lines().at(3), (Lines{"one", "[1,2] is no tag"})) << piece;
    EXPECT_EQ(f.last_lines().at(4), Lines{"two"}) << piece;
    EXPECT_EQ(f.last_lines().at(kMpirunItself), Lines{"[9]"}) << piece;
  }
}

TEST(TagFilter, AProgressLineStaysOne) {
  TagFilter f;
  EXPECT_EQ(f.take("[1,0]<stderr>:\rstep 1[1,0]<stderr>:\rstep 2[1,1]<stderr>:oh\n[1,0]<stderr>:\n"),
            "\rstep 1\rstep 2oh\n\n");
  EXPECT_EQ(f.last_lines().at(0), Lines{"step 2"});
  EXPECT_EQ(f.last_lines().at(1), Lines{"oh"});
}

TEST(TagFilter, TheEndMayComeWithoutANewline) {
  TagFilter f;
  EXPECT_EQ(f.take("[1,0]<stderr>:half a line [1,"), "half a line ");
  EXPECT_EQ(f.flush(), "[1,");
  EXPECT_EQ(f.last_lines().at(0), Lines{"half a line [1,"});
}

TEST(TagFilter, KeepsTheLastTwenty) {
  TagFilter f;
  for (int i = 0; i < 50; ++i) f.take("[1,0]<stderr>:" + std::to_string(i) + "\n");
  EXPECT_EQ(f.last_lines().at(0).size(), 20u);
  EXPECT_EQ(f.last_lines().at(0).back(), "49");
}

// What is written into the pipe by a rank comes to `to`; the reading end of it is ours.
class Output : public testing::Test {
 protected:
  void SetUp() override {
    before_ = ::signal(SIGPIPE, SIG_IGN);
    ASSERT_EQ(::pipe2(ends_, O_CLOEXEC), 0);
    to_ = ::fdopen(ends_[1], "w");
    pipe_.emplace(to_);
  }
  void TearDown() override {
    pipe_.reset();
    std::fclose(to_);
    if (ends_[0] >= 0) ::close(ends_[0]);
    ::signal(SIGPIPE, before_);
  }
  // As a rank that prints so many lines of a hundred bytes.
  void print(int lines) {
    for (int i = 0; i < lines; ++i) {
      std::string line = std::to_string(printed_++);
      line.resize(99, '.');
      line += '\n';
      ASSERT_EQ(::write(pipe_->write_end(), line.data(), line.size()), static_cast<ssize_t>(line.size()));
      pipe_->take();
    }
  }
  std::string read() {
    ::fcntl(ends_[0], F_SETFL, O_NONBLOCK);
    std::string text;
    char buffer[4096];
    for (ssize_t n = 0; (n = ::read(ends_[0], buffer, sizeof(buffer))) > 0;) {
      text.append(buffer, static_cast<size_t>(n));
      pipe_->take();
    }
    return text;
  }
  int ends_[2] = {-1, -1};
  std::FILE* to_ = nullptr;
  std::optional<OutputPipe> pipe_;
  int printed_ = 0;
  void (*before_)(int) = nullptr;
};

TEST_F(Output, APausedReaderGetsItLater) {
  print(3000);  // 300 kB: more than a pipe holds
  const std::string text = read();
  EXPECT_EQ(text.size(), 300000U);
  EXPECT_EQ(text.rfind("2999.", text.size()), text.size() - 100);
}

TEST_F(Output, OfAReaderThatStaysAwayTheLastIsKept) {
  print(15000);  // 1.5 MB
  const std::string text = read();
  EXPECT_GT(text.size(), 1000000U);
  EXPECT_LT(text.size(), 1300000U);
  EXPECT_NE(text.find("14999."), std::string::npos);
  EXPECT_NE(text.find("bytes of output are left out"), std::string::npos);
}

TEST_F(Output, AReaderThatGoesAwayStopsNobody) {
  print(10);
  ::close(ends_[0]);
  ends_[0] = -1;
  print(3000);
  pipe_->finish();
  EXPECT_EQ(pipe_->filter().last_lines().at(kMpirunItself).back().substr(0, 5), "3009.");
}

}  // namespace
}  // namespace pesc
