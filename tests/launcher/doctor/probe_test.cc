// A question to a library is answered, or its trouble is told in time, whatever the library does.
#include "launcher/doctor/probe.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

namespace pesc {
namespace {

constexpr std::chrono::milliseconds kLong(60000), kShort(300);

TEST(Probe, ReturnsTheAnswer) {
  const ProbeResult r = probe([] { return std::string("4.1.4\nand more"); }, kLong);
  EXPECT_EQ(r.text, "4.1.4\nand more");
  EXPECT_EQ(r.trouble, "");
  const std::string large(300000, 'x');  // more than a pipe holds
  EXPECT_EQ(probe([&] { return large; }, kLong).text, large);
  EXPECT_EQ(probe([] { return std::string(); }, kLong).trouble, "") << "an empty answer is one";
}

TEST(Probe, TellsWhatWasThrown) {
  const ProbeResult r = probe([]() -> std::string { throw std::runtime_error("no driver"); }, kLong);
  EXPECT_EQ(r.trouble, "no driver");
  EXPECT_EQ(r.text, "");
}

TEST(Probe, TellsOfACrashAndQuotesIt) {
  const ProbeResult r = probe(
      []() -> std::string {
        std::fprintf(stderr, "-----\nfirst\n\nlast words\n");
        ::signal(SIGABRT, SIG_DFL);
        ::raise(SIGABRT);
        return "";
      },
      kLong);
  EXPECT_NE(r.trouble.find("signal 6"), std::string::npos) << r.trouble;
  EXPECT_TRUE(r.trouble.ends_with(": first last words")) << r.trouble;
  EXPECT_EQ(probe([]() -> std::string { ::_exit(7); }, kLong).trouble, "ended with exit code 7");
}

TEST(Probe, AHangEndsWithTheLimitAndNothingOfItIsLeft) {
  int pipe_of_child[2];
  ASSERT_EQ(::pipe(pipe_of_child), 0);
  const auto begin = std::chrono::steady_clock::now();
  const ProbeResult r = probe(
      [&]() -> std::string {
        const pid_t grandchild = ::fork();
        if (grandchild == 0) {
          for (;;) ::pause();
        }
        if (::write(pipe_of_child[1], &grandchild, sizeof(grandchild)) < 0) ::_exit(1);
        for (;;) ::pause();
      },
      kShort);
  EXPECT_TRUE(r.trouble.starts_with("no answer within 0.3 s")) << r.trouble;
  EXPECT_GE(r.seconds, 0.3);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, kLong);
  pid_t grandchild = 0;
  ASSERT_EQ(::read(pipe_of_child[0], &grandchild, sizeof(grandchild)), ssize_t{sizeof(grandchild)});
  for (const int fd : pipe_of_child) ::close(fd);
  // Its new parent reaps it, or it stays a zombie where there is none that does.
  const std::string stat = "/proc/" + std::to_string(grandchild) + "/stat";
  char state = 'R';
  for (int i = 0; i < 1000 && state != 'Z' && state != 0; ++i) {
    std::FILE* file = std::fopen(stat.c_str(), "r");
    if (file == nullptr || std::fscanf(file, "%*d %*s %c", &state) != 1) state = 0;
    if (file != nullptr) std::fclose(file);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_TRUE(state == 'Z' || state == 0) << state;
}

}  // namespace
}  // namespace pesc
