// MPI from its start to its end, and the communicator of all ranks: host memory, any number of ranks, on
// OpenMPI.
#pragma once

#include <memory>

#include "parallel/communicator.h"
#include "parallel/host_cores.h"

namespace pesc {

struct MpiWaitPolicy;

// Initialises MPI for the life of the object (once per process) unless it is already up, in which case the
// object leaves it up. Uncaught errors elsewhere: `abort` ends all ranks with the given exit code.
class MpiSession {
 public:
  MpiSession();
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  // All ranks of MPI_COMM_WORLD, on a communicator of its own.
  [[nodiscard]] std::unique_ptr<Communicator> world() const;
  // This rank's number and the number of ranks on this host.
  [[nodiscard]] int local_rank() const { return local_rank_; }
  [[nodiscard]] int local_size() const { return local_size_; }
  // What it was given of this host when it was started.
  [[nodiscard]] const HostCores& cores() const { return cores_; }
  // How long this session's communicators, old and new, wait for one operation before they throw HangError;
  // 600 s unless set.
  void set_wait_limit(double seconds);
  [[noreturn]] static void abort(int exit_code);
  // The first line of what the MPI library says of itself.
  [[nodiscard]] static std::string library_version();

 private:
  bool owns_ = false;
  int local_rank_ = 0;
  int local_size_ = 1;
  HostCores cores_;
  std::shared_ptr<MpiWaitPolicy> policy_;  // shared with the communicators, which may outlive the session
};

}  // namespace pesc
