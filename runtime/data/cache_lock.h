// One process at a time writes into a folder of tokenised rows, or makes a file of the weight cache
// (runtime/weight_cache/weight_cache.h).
//
// A file of the folder, for tokenised rows `pesc.tokens.lock`, is held by flock(2), which over NFS holds on all hosts;
// where the file system does not have it, by fcntl(2), and without that either, by the file of that name with `.held`
// (runtime/checkpoint/held_file.h). The lock of a process that dies is gone with it. In the file stands who has
// it, how far the work is, and how it ended: what those who wait for it read.
#pragma once

#include <memory>
#include <string>

#include "runtime/checkpoint/held_file.h"
#include "runtime/checkpoint/run_lock.h"

namespace pesc {

struct CacheLockFile {
  std::string path;
  std::string what;  // is held by it: "cache_dir 'tokens'"
};

class CacheLock {
 public:
  // Null where another process has it; `why` then says what is known of that. Throws IoError.
  [[nodiscard]] static std::unique_ptr<CacheLock> try_acquire(const std::string& directory, std::string& why,
                                                              const LockCalls& calls = system_lock_calls());
  // The same of another file than that of tokenised rows.
  [[nodiscard]] static std::unique_ptr<CacheLock> try_acquire(const CacheLockFile& file, std::string& why,
                                                              const LockCalls& calls = system_lock_calls());
  ~CacheLock();
  CacheLock(const CacheLock&) = delete;
  CacheLock& operator=(const CacheLock&) = delete;

  // What stands in the file; empty where it cannot be read. At most kMostBytes.
  [[nodiscard]] static std::string text(const std::string& directory) noexcept;
  // What stood there when the lock was taken.
  [[nodiscard]] const std::string& text_before() const { return before_; }
  // Nothing where it cannot be written: the text is for people and for those who wait.
  void write(const std::string& text) noexcept;

 private:
  static constexpr size_t kMostBytes = 4096;
  explicit CacheLock(int fd) : fd_(fd) {}
  [[nodiscard]] static std::string read(int fd) noexcept;

  int fd_;
  std::unique_ptr<HeldFile> held_;
  std::string before_;
};

// "pid 4711 on host node3", of this process.
[[nodiscard]] std::string this_process_name();

}  // namespace pesc
