#include "launcher/launch_signals.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "launcher/standard_output.h"
#include "ops/core/check.h"

namespace pesc {
namespace {

constexpr auto kOneWish = std::chrono::seconds(1);
constexpr int kWatched[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCHLD};

// A handler has no other way to know where to write.
std::atomic<int> write_end = -1;
static_assert(std::atomic<int>::is_always_lock_free);

void on_signal(int number) {
  const int before = errno;
  const char text = static_cast<char>(number);
  [[maybe_unused]] const ssize_t n = ::write(write_end.load(), &text, 1);  // a full pipe has told enough
  errno = before;
}

bool is_ignored(int number) {
  struct sigaction now {};
  return ::sigaction(number, nullptr, &now) == 0 && now.sa_handler == SIG_IGN;
}

}  // namespace

StopSignals::StopSignals(Under under) : under_(under) {
  if (::pipe2(pipe_, O_CLOEXEC | O_NONBLOCK) != 0)
    throw IoError(str_cat("a pipe cannot be made: ", std::strerror(errno)));
  write_end.store(pipe_[1]);
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  sigemptyset(&set);
  for (const int number : kWatched) {
    if (number == SIGHUP && is_ignored(number)) continue;
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART | SA_NOCLDSTOP;
    sigfillset(&action.sa_mask);
    ::sigaction(number, &action, nullptr);
    sigaddset(&set, number);
  }
  ::sigprocmask(SIG_UNBLOCK, &set, nullptr);  // whoever started us may have blocked them
}

StopSignals::~StopSignals() {
  write_end.store(-1);
  for (const int end : pipe_) ::close(end);
}

void StopSignals::read(Clock::time_point now) {
  char numbers[64];
  for (ssize_t n = 0; (n = ::read(pipe_[0], numbers, sizeof(numbers))) > 0;) {
    for (ssize_t i = 0; i < n; ++i) {
      if (numbers[i] == SIGCHLD) continue;
      const bool more = under_ == Under::kNothing || numbers[i] == SIGINT;
      if (requests_ > 0 && (!more || now - counted_ < kOneWish)) continue;
      ++requests_;
      counted_ = now;
    }
  }
}

HeldSignals::HeldSignals() {
  sigset_t all;
  sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, &before_);
}

HeldSignals::~HeldSignals() {
  ::sigprocmask(SIG_SETMASK, &before_, nullptr);
}

void HeldSignals::in_child() {
  for (const int number : kWatched) {
    if (!is_ignored(number)) ::signal(number, SIG_DFL);
  }
  default_write_signals();
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  ::sigprocmask(SIG_SETMASK, &blocked, nullptr);
}

void tell_ranks(pid_t mpirun, const std::vector<Heartbeat>& ranks, const LaunchMark& mark) {
  const std::string host = host_name();
  const std::vector<pid_t> ours = mark.processes();  // a number may be another process's by now
  bool here = false;
  for (const Heartbeat& h : ranks) {
    if (h.host != host) continue;
    here = true;
    if (std::find(ours.begin(), ours.end(), h.pid) != ours.end()) ::kill(h.pid, SIGUSR1);
  }
  if (!here) ::kill(mpirun, SIGUSR1);
}

}  // namespace pesc
