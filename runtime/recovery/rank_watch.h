// One rank's watch over itself: its section, how long it may stay there, and the cause of its death.
//
// Three limits end a hang, each in case the one before does not. The supervisor, where there is one, ends the
// job when a rank of its host has made no progress for the section's limit; a collective gives up after twice
// that (HangError, with the rank that it waited for); and a thread of the watch ends the process, wherever it
// hangs, after three times. All with exit code 76. Time in which the whole process was suspended does not
// count for the thread.
//
// The same thread ends the process when its parent (mpirun or its daemon) is gone: nobody would clean it up.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/recovery/fault.h"
#include "runtime/recovery/rank_files.h"
#include "runtime/recovery/recovery_section.h"

namespace pesc {

class RankWatch {
 public:
  // `set_wait_limit` bounds this rank's collectives, in seconds.
  RankWatch(int rank, int world, std::function<void(double)> set_wait_limit);
  ~RankWatch();
  RankWatch(const RankWatch&) = delete;
  RankWatch& operator=(const RankWatch&) = delete;

  // Starts the limits, in section kSetup. After place_rank_on_host, whose binding the thread takes over.
  void start(const RecoverySection& limits);
  // From here on heartbeat and cause of death go to the run directory, which launch `launch_id` owns.
  // Throws IoError where no heartbeat can be written.
  void report_to(const std::string& run_dir, uint64_t launch_id, const std::vector<FaultPoint>& faults);

  // This rank comes to `section`, `done` steps being done.
  void enter(Section section, int64_t done);
  // A whole step took so long: what the limit of a step is learned from. The first stays out of the mean.
  void step_took(double seconds);
  FaultPoints& faults() { return faults_; }

  void died(int exit_code, const std::string& error) noexcept;

 private:
  [[nodiscard]] double limit_of(Section section) const;
  void guard();

  const int rank_;
  const int world_;
  std::function<void(double)> set_wait_limit_;
  RecoverySection limits_;
  Heartbeat beat_;
  std::string run_dir_;
  std::unique_ptr<HeartbeatFile> file_;
  FaultPoints faults_;
  double mean_step_ = 0;
  int64_t steps_ = 0;

  std::mutex mutex_;  // of what the thread shares
  std::condition_variable wake_;
  double deadline_ = 0;  // seconds that are left to this section
  double longest_ = 0;   // of those that it had
  bool ending_ = false;
  Death state_;
  std::thread thread_;
};

}  // namespace pesc
