// One rank of the job: its place on the host, its groups, and how all ranks agree on an error.
#pragma once

#include <functional>
#include <memory>

#include "model/config.h"
#include "model/decoder.h"
#include "parallel/communicator.h"
#include "parallel/gradient_reduction.h"
#include "parallel/mesh.h"
#include "parallel/mpi_communicator.h"

namespace pesc {

// Which CPUs a rank may use, and how many threads its operations get.
struct HostPlacement {
  int cores = 1;       // of the host, that this job may use
  int threads = 1;     // of this rank
  int local_rank = 0;  // number of this rank on its host
};
// Takes back the binding that mpirun gave by default, and binds this rank to its share of the host's cores:
// blocks of cores / local_size, or one core for several ranks when there are more ranks than cores. `threads`
// > 0 overrides the number of threads. Must run before the first thread is started.
HostPlacement place_rank_on_host(int local_rank, int local_size, int threads);

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
