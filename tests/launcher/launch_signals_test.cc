#include "launcher/launch_signals.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <initializer_list>
#include <thread>

#include "launcher/launch_process.h"

namespace pesc {
namespace {

using Under = StopSignals::Under;

// Requests after what comes within `seconds`, at least `wanted`; signals read in one call came together, and
// one call is more than a second after the other.
int wait_for_requests(StopSignals& signals, int wanted, double seconds = 2) {
  static auto told = std::chrono::steady_clock::now();
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (signals.requests() < wanted && std::chrono::steady_clock::now() < until) {
    pollfd fd{signals.fd(), POLLIN, 0};
    ::poll(&fd, 1, 20);
    signals.read(told += std::chrono::milliseconds(1100));
  }
  return signals.requests();
}

TEST(StopSignals, WithinASecondAreOne) {
  StopSignals signals(Under::kNothing);
  const auto begin = std::chrono::steady_clock::now();
  const auto after = [&](int ms, std::initializer_list<int> numbers) {
    for (const int number : numbers) {
      ::kill(::getpid(), number);
      pollfd fd{signals.fd(), POLLIN, 0};
      ::poll(&fd, 1, 2000);
    }
    signals.read(begin + std::chrono::milliseconds(ms));
    return signals.requests();
  };
  EXPECT_EQ(after(0, {SIGINT, SIGTERM, SIGTERM}), 1);
  EXPECT_EQ(after(500, {SIGINT}), 1);
  EXPECT_EQ(after(999, {SIGTERM}), 1);
  EXPECT_EQ(after(1001, {SIGTERM}), 2);  // counted from the one that counted
  EXPECT_EQ(after(1900, {SIGTERM}), 2);
  EXPECT_EQ(after(5000, {}), 2);
  EXPECT_EQ(after(5001, {SIGINT}), 3);
}

// What SIG... does when StopSignals begins, as inherited from whoever started us; as before at the end.
class Inherited {
 public:
  Inherited(int number, void (*handler)(int)) : number_(number), before_(::signal(number, handler)) {}
  ~Inherited() { ::signal(number_, before_); }

 private:
  int number_;
  void (*before_)(int);
};

// A thread from before StopSignals that has every signal unblocked, as libraries make them when they are
// loaded.
class StrayThread {
 public:
  StrayThread() {
    while (!runs_) std::this_thread::yield();
  }
  ~StrayThread() {
    ends_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> runs_ = false, ends_ = false;
  std::thread thread_{[this] {
    runs_ = true;
    while (!ends_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }};
};

// Each must arrive. With a signalfd and blocked signals the thread got most of them, and ended the process
// or, where they were ignored, dropped them.
TEST(StopSignals, AreSeenBesideALibrarysThread) {
  for (void (*inherited)(int) : {SIG_DFL, SIG_IGN}) {
    for (const int number : {SIGTERM, SIGINT, SIGUSR1}) {
      const Inherited how(number, inherited);
      const StrayThread thread;
      StopSignals signals(Under::kNothing);
      for (int i = 1; i <= 50; ++i) {
        ::kill(::getpid(), number);
        ASSERT_EQ(wait_for_requests(signals, i), i) << "signal " << number;
      }
    }
  }
}

TEST(StopSignals, AreSeenWhereTheyWereBlocked) {
  sigset_t set, before;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  ::sigprocmask(SIG_BLOCK, &set, &before);
  {
    StopSignals signals(Under::kNothing);
    ::kill(::getpid(), SIGTERM);
    EXPECT_EQ(wait_for_requests(signals, 1), 1);
  }
  ::sigprocmask(SIG_SETMASK, &before, nullptr);
}

TEST(StopSignals, ATerminalThatGoesAwayAsksToStopButNotUnderNohup) {
  for (void (*inherited)(int) : {SIG_DFL, SIG_IGN}) {
    const Inherited how(SIGHUP, inherited);
    StopSignals signals(Under::kNothing);
    ::kill(::getpid(), SIGHUP);
    EXPECT_EQ(wait_for_requests(signals, 1, 0.2), inherited == SIG_DFL ? 1 : 0);
  }
}

TEST(StopSignals, UnderSlurmOnlyASecondSigintAsksForMore) {
  StopSignals signals(Under::kSlurm);
  for (const int number : {SIGTERM, SIGTERM, SIGUSR1}) {
    ::kill(::getpid(), number);
    EXPECT_EQ(wait_for_requests(signals, 2, 0.1), 1);
  }
  ::kill(::getpid(), SIGINT);
  EXPECT_EQ(wait_for_requests(signals, 2), 2);
}

TEST(StopSignals, TheEndOfAChildWakesAndAsksForNothing) {
  const Inherited how(SIGCHLD, SIG_IGN);  // would take the child's status away
  StopSignals signals(Under::kNothing);
  const pid_t child = ::fork();
  if (child == 0) ::_exit(7);
  pollfd fd{signals.fd(), POLLIN, 0};
  const int woken = ::poll(&fd, 1, 2000);
  EXPECT_TRUE(woken == 1 || (woken < 0 && errno == EINTR)) << woken;
  EXPECT_EQ(wait_for_requests(signals, 1, 0.05), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

// What is started has SIGTERM blocked and nothing else, and ignores none of them.
TEST(StopSignals, AProcessIsStartedWithoutThem) {
  const Inherited how(SIGTERM, SIG_IGN);
  StopSignals signals(Under::kNothing);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t child = start_process({"grep", "^Sig[BI]", "/proc/self/status"}, "", ends[1], ends[1]);
  ::close(ends[1]);
  std::string text;
  char buffer[512];
  for (ssize_t n = 0; (n = ::read(ends[0], buffer, sizeof(buffer))) > 0;)
    text.append(buffer, static_cast<size_t>(n));
  ::close(ends[0]);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  const auto mask = [&](const std::string& name) {
    return std::stoull(text.substr(text.find(name) + 8), nullptr, 16);
  };
  EXPECT_EQ(mask("SigBlk:"), 1ULL << (SIGTERM - 1)) << text;
  for (const int number : {SIGTERM, SIGINT, SIGUSR1, SIGCHLD})
    EXPECT_EQ(mask("SigIgn:") >> (number - 1) & 1, 0U) << number << '\n' << text;
}

// mpirun catches SIGUSR1 no more when it is ending, and would die of it; its ranks are gone by then.
TEST(TellRanks, AnMpirunWhoseRanksAreGoneIsLeftAlone) {
  const pid_t mpirun = ::fork();
  if (mpirun == 0) {
    ::signal(SIGUSR1, SIG_DFL);
    for (;;) ::pause();
  }
  Heartbeat gone;
  gone.host = host_name();
  gone.pid = ::fork();
  if (gone.pid == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(gone.pid, nullptr, 0), gone.pid);
  const LaunchMark mark("1-1-");
  int status = 0;
  tell_ranks(mpirun, {gone}, mark);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(::waitpid(mpirun, &status, WNOHANG), 0) << "it was told";
  tell_ranks(mpirun, {}, mark);  // no rank is here yet: mpirun passes it on
  ASSERT_EQ(::waitpid(mpirun, &status, 0), mpirun);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1) << status;
}

}  // namespace
}  // namespace pesc
