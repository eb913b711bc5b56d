// The MPI session of a rank, and the communicator of all ranks: collectives over host memory, on Open MPI.
#pragma once

#include <memory>

#include "parallel/communicator.h"
#include "parallel/host_cores.h"

namespace pesc {

struct MpiWaitPolicy;

// Initialises MPI for the life of the object, once per process. Where MPI is already initialised, the object
// leaves it so.
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
  // The cores on which this rank was started.
  [[nodiscard]] const HostCores& cores() const { return cores_; }
  // Sets the seconds that this session's communicators, existing and new, wait for one operation before they
  // throw HangError. The default is 600.
  void set_wait_limit(double seconds);
  // Ends all ranks with this exit code (MPI_Abort).
  [[noreturn]] static void abort(int exit_code);
  // The first line of MPI_Get_library_version.
  [[nodiscard]] static std::string library_version();

 private:
  bool owns_ = false;
  int local_rank_ = 0;
  int local_size_ = 1;
  HostCores cores_;
  std::shared_ptr<MpiWaitPolicy> policy_;  // shared with the communicators, which may outlive the session
};

}  // namespace pesc
