// One rank of the job: its place on the host, its groups, and how all ranks agree on an error.
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
  int cores = 1;        // given to this rank and those that share them with it
  int threads = 1;      // of this rank
  int local_rank = 0;   // number of this rank on its host
  std::vector<int> on;  // the cores that this rank is to be bound to; empty: all that it was given
  std::string why;      // what bounds cores and threads, for the log; empty: nothing does
};
// A rank keeps to the cores that it was given. Those that several ranks were given alike are divided: blocks
// of cores / sharers, or one core for several ranks when there are more ranks than cores. It has a thread for
// each of its cores, and no more than its part of `quota`, the CPUs that the cgroup of the host's ranks may
// use (cpu_quota.h; 0: no bound). `threads` > 0 overrides the number of threads, not the cores.
// `online` is the number of cores of the host, for `why` alone.
[[nodiscard]] HostPlacement divide_host(const HostCores& given, double quota, int online, int local_rank,
                                        int local_size, int threads);
// The same on this host, and binds this process. Must run before the first thread is started.
HostPlacement place_rank_on_host(const HostCores& given, int local_rank, int local_size, int threads);

// Takes this rank's GPU (device.index is set) and opens the world of all ranks' GPUs. Collective; throws
// AgreedError.
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

// An error that all ranks know of. Only `speaker` should print it.
struct AgreedError : Error {
  AgreedError(ExitCode code, const std::string& what, bool is_speaker)
      : Error(code, what), speaker(is_speaker) {}
  bool speaker;
};

// Runs `work` on every rank; if it throws an Error on any, all ranks throw AgreedError with the code and text
// of the lowest such rank. Collective; `work` itself must not be.
void together(Communicator& world, const std::function<void()>& work);

// For collective work that throws the same Error on every rank: makes it an AgreedError, which one rank
// prints. A HangError is this rank's alone and passes as it is.
void all_alike(const Communicator& world, const std::function<void()>& work);

}  // namespace pesc
