// One rank of the job: its cores on the host, its process groups, and errors that all ranks agree on.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/decoder.h"
#include "parallel/communicator.h"
#include "parallel/gradient_reduction.h"
#include "parallel/host_cores.h"
#include "parallel/mesh.h"
#include "parallel/mpi_session.h"

namespace pesc {

// Which CPUs a rank may use, and how many threads its operations get.
struct HostPlacement {
  int cores = 1;        // the cores of this rank and of those that share them with it
  int threads = 1;      // of this rank
  int local_rank = 0;   // number of this rank on its host
  std::vector<int> on;  // the cores to bind this rank to; empty: leave its affinity as it is
  std::string why;      // what limits cores and threads, for the log; empty: nothing does
};
// Divides the cores that ranks share: each gets a block of cores / sharers, or several ranks get one core
// when there are more ranks than cores. A rank has one thread per core, but no more than its part of `quota`,
// the CPUs that the cgroup allows to the host's ranks (cpu_quota.h; 0: no limit). `threads` > 0 overrides the
// number of threads, not the cores. `online` is the number of cores of the host, for `why` only.
[[nodiscard]] HostPlacement divide_host(const HostCores& given, double quota, int online, int local_rank,
                                        int local_size, int threads);
// The same for this host; also binds this process. REQUIRES: no thread has been started yet.
HostPlacement place_rank_on_host(const HostCores& given, int local_rank, int local_size, int threads);

// Chooses this rank's GPU (device.index is written) and opens the communicator of all ranks' GPUs.
// Collective. Throws AgreedError.
[[nodiscard]] std::unique_ptr<Communicator> connect_gpus(Communicator& world, const HostPlacement& placement,
                                                         bool share_gpu, Device& device);

// The communicators of a job, and the reduction table over them.
class Ranks {
 public:
  Ranks(Communicator& world, int tp, int ep, int64_t kv_heads);

  [[nodiscard]] const Mesh& mesh() const { return mesh_; }
  [[nodiscard]] Communicator& world() const { return world_; }
  [[nodiscard]] Communicator& tp() const { return *tp_; }
  [[nodiscard]] Groups groups() const { return {world_, *tp_, *ep_}; }
  [[nodiscard]] const GradientReduction& reduction() const { return reduction_; }
  [[nodiscard]] bool first() const { return world_.rank() == 0; }
  // Payload bytes that this rank has sent so far, over all groups.
  [[nodiscard]] int64_t bytes_sent() const;

 private:
  Communicator& world_;
  Mesh mesh_;
  std::unique_ptr<Communicator> tp_, ep_;
  GradientReduction reduction_;
};

// An error that is the same on all ranks. Only the rank with `reporting` should print it.
struct AgreedError : Error {
  AgreedError(ExitCode code, const std::string& what, bool is_reporting)
      : Error(code, what), reporting(is_reporting) {}
  bool reporting;
};

// Runs `work` on every rank. If it throws an Error on any rank, all ranks throw AgreedError with the code and
// text of the lowest such rank. Collective. REQUIRES: `work` makes no collective calls.
void run_collectively(Communicator& world, const std::function<void()>& work);

// For collective work that throws the same Error on every rank: rethrows it as AgreedError, so that one rank
// prints it. A HangError concerns this rank only and is not changed.
void rethrow_agreed(const Communicator& world, const std::function<void()>& work);

}  // namespace pesc
