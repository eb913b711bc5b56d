// One launch at a time owns a run directory.
//
// `pesc.lock` is held by flock(2) for the life of the owner, and says who it is; where the file system does
// not have it, by fcntl(2), and without that either, by the file `pesc.lock.held`
// (runtime/checkpoint/held_file.h). `pesc.launch_id` counts the launches: a process of an earlier one that
// still lives (its supervisor killed) sees a newer number and may not commit.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/checkpoint/folder_before.h"
#include "runtime/checkpoint/held_file.h"

namespace pesc {

// Two ways to lock the file behind a descriptor for the life of its open file, without waiting: 0, or errno.
// A test gives others.
struct LockCalls {
  std::function<int(int)> flock;
  std::function<int(int)> fcntl;
};
[[nodiscard]] LockCalls system_lock_calls();

class RunLock {
 public:
  // Makes the directory if it is not there; where it throws, everything is as before. Throws UsageError when
  // another process holds it (naming its pid and host), when it is not empty and not a run directory of ours,
  // or when it is one of a pesc with the old field names. Throws IoError when it cannot be read or written,
  // DataError when the launch id file is damaged.
  [[nodiscard]] static RunLock acquire(const std::string& run_dir,
                                       const LockCalls& calls = system_lock_calls());
  // The number of the newest launch; 0 when there has been none. IoError, DataError.
  [[nodiscard]] static uint64_t current_launch_id(const std::string& run_dir);

  RunLock(RunLock&& other) noexcept;
  RunLock& operator=(RunLock&&) = delete;
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;
  ~RunLock();

  [[nodiscard]] uint64_t launch_id() const { return launch_id_; }
  // The start is refused, and nothing of it runs any more: the directory is as it was before acquire(), but
  // for what is not a launch's (runtime/checkpoint/folder_before.h). Lines of what could not be put back.
  // Nothing is done where another launch has the directory by now.
  [[nodiscard]] std::vector<std::string> take_back() noexcept;
  // Whether there had been a launch in the directory before.
  [[nodiscard]] bool was_in_use() const { return launch_id_at_start_ > 1; }
  // A new number under the same lock, for ranks that are started again. IoError, DataError.
  void next_launch_id();
  // False when another launch has taken the directory (the lock file replaced or a newer launch id), or when
  // that cannot be found out. Ranks, which do not hold the lock, compare current_launch_id() instead.
  [[nodiscard]] bool still_ours() const noexcept;

 private:
  [[nodiscard]] bool is_in_place() const noexcept;
  void lock(const std::string& path, const LockCalls& calls);
  RunLock(std::string run_dir, int fd) : run_dir_(std::move(run_dir)), fd_(fd) {}
  std::string run_dir_;
  int fd_ = -1;
  std::unique_ptr<HeldFile> held_;  // where nothing else locks
  std::unique_ptr<FolderBefore> before_;
  uint64_t launch_id_ = 0;
  uint64_t launch_id_at_start_ = 0;
};

}  // namespace pesc
