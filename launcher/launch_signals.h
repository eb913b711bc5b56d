// The signals that tell the supervisor to stop, and SIGCHLD, read from a descriptor.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <chrono>
#include <vector>

#include "launcher/launch_mark.h"
#include "runtime/recovery/rank_files.h"

namespace pesc {

// SIGTERM, SIGINT, SIGUSR1 and SIGHUP ask to stop; SIGHUP not under nohup, which ignores it. They are caught,
// not blocked: a thread that a library made before main (OpenBLAS does) has them unblocked, and would die of
// them or, where they were ignored at the start, swallow them. Only one object may exist at a time; after
// it they do nothing, so that the exit code of a supervisor that is ending stands.
class StopSignals {
 public:
  // Slurm tells every process of a job at once, often several times, and ends by SIGKILL what is still there
  // when its time is up: under Slurm only a second SIGINT (Ctrl-C) asks for more than the first signal.
  enum class Under { kNothing, kSlurm };
  explicit StopSignals(Under under);  // throws IoError
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  // Takes what has come. Call it after poll() on fd(). Signals within a second of the one that counted are
  // that one: a terminal, a wrapper and a batch system may all pass on the same wish.
  using Clock = std::chrono::steady_clock;
  void read(Clock::time_point now = Clock::now());
  [[nodiscard]] int fd() const { return pipe_[0]; }
  [[nodiscard]] int requests() const { return requests_; }

 private:
  const Under under_;
  int pipe_[2] = {-1, -1};
  int requests_ = 0;
  Clock::time_point counted_;  // the last
};

// Blocks all signals while it lives, for fork(). The child calls in_child(), which is async-signal-safe.
class HeldSignals {
 public:
  HeldSignals();
  ~HeldSignals();
  HeldSignals(const HeldSignals&) = delete;
  HeldSignals& operator=(const HeldSignals&) = delete;
  // Before exec: what is caught here is not caught there, and only SIGTERM is blocked.
  static void in_child();

 private:
  sigset_t before_;
};

// Asks the ranks to save and stop. It is enough that one rank knows, since all ranks agree at every step. So
// the ranks of this host get the signal directly, by process id. Only when this host has none (yet), mpirun
// gets SIGUSR1, which it forwards; a wrapper of mpirun might not forward it or might die of it, as mpirun
// itself does after its ranks have ended.
void tell_ranks(pid_t mpirun, const std::vector<Heartbeat>& ranks, const LaunchMark& mark);

}  // namespace pesc
