// The mark of a launch, by which its processes and files can be found and removed, also by a later
// supervisor: processes by PESC_LAUNCH in their environment, Open MPI's session files and shared-memory
// segments by their directory. The mark contains the device and inode of the run directory's lock file, and
// the launch id. Whoever holds the lock knows that every other process with this run directory's mark is
// left over.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace pesc {

// Where the shared-memory segments of this machine are.
constexpr const char* kSharedMemoryFolder = "/dev/shm";
// TMPDIR as an absolute path, or /tmp.
[[nodiscard]] std::string temporary_folder();

class LaunchMark {
 public:
  // The run directory's lock must exist. Throws IoError.
  LaunchMark(const std::string& run_dir, uint64_t launch_id);
  // What another host knows as run() and temporary_folder(): device numbers differ from host to host. For
  // remove_leftovers() only. UsageError.
  explicit LaunchMark(const std::string& run, const std::string& temporary_folder = "/tmp");

  // The part that all launches of the run directory have in common.
  [[nodiscard]] const std::string& run() const { return run_; }
  [[nodiscard]] std::string environment() const { return "PESC_LAUNCH=" + text(); }
  // TMPDIR, or /tmp: where session_directory() is.
  [[nodiscard]] const std::string& temporary_folder() const { return temporary_; }
  [[nodiscard]] std::string session_directory() const { return temporary_ + "/pesc-" + text(); }
  [[nodiscard]] std::string shared_memory_directory() const { return "/dev/shm/pesc-" + text(); }
  // Of the hosts in use, as read_hostfile understood the operator's.
  [[nodiscard]] std::string hostfile() const { return session_directory() + "/hostfile"; }
  // Makes both, for this user only. Throws IoError.
  void make_directories() const;

  // One of session_directory(), where it is still there, and the shared-memory directory of the same launch.
  static void remove_directories(const std::string& session_directory);
  // A rank's, before MPI starts: makes the directory that mpirun was told, where it is one of ours, on a host
  // to which make_directories() did not come. Throws IoError.
  static void make_shared_memory_directory();

  // This host's processes that bear the run directory's mark, of any launch.
  [[nodiscard]] std::vector<pid_t> processes() const;
  // Kills every process of this host that bears the run directory's mark, of any launch, waits until they are
  // gone, and removes the directories of all of them. Returns what was found, one line each.
  std::vector<std::string> remove_leftovers() const;

 private:
  [[nodiscard]] std::string text() const;
  std::string run_;        // "DEVICE-INODE-"
  std::string temporary_;  // absolute
  uint64_t launch_id_ = 0;
};

}  // namespace pesc
