// Which GPU a rank uses, and the communicator of all ranks with GPUs: device collectives over NCCL, host
// collectives over MPI. See parallel/README.md.
#pragma once

#include <memory>

#include "parallel/communicator.h"
#include "parallel/mesh.h"

namespace pesc {

// Whether several ranks may use one GPU. kShared is a test mode: every rank gets a distinct NCCL_HOSTID
// before the first NCCL call, so that NCCL treats it as a separate host and moves data through sockets.
enum class GpuUse { kExclusive, kShared };

// The GPU of the rank with this number on its host: GPU local_rank modulo the number of GPUs that the rank
// sees (a scheduler may show it only its own). Local. Throws UsageError when there is no usable GPU.
[[nodiscard]] int gpu_of_rank(int local_rank);

// The communicator of all ranks on their GPUs. Collective over `host`. Throws UsageError, the same on all
// ranks, when ranks would share a GPU under kExclusive, when their NCCL versions differ, or when there are
// several ranks and this build has no NCCL.
[[nodiscard]] std::unique_ptr<Communicator> open_gpu_world(Communicator& host, int gpu, GpuUse use);

// The checks of open_gpu_world that need no GPU, for tests. Collective over `host`; they throw the same
// UsageError on all ranks. `gpu_id` identifies the board of this rank (DeviceInfo::id); `version` is
// ncclGetVersion's.
void check_one_rank_per_gpu(Communicator& host, const std::string& gpu_id);
void check_same_nccl(Communicator& host, int64_t version);
// 22809 is "NCCL 2.28.9".
[[nodiscard]] std::string nccl_version_text(int64_t version);

// "NCCL 2.28.9", or a text that says that this build has no NCCL; for logs.
[[nodiscard]] std::string nccl_version();
// "NCCL_ALGO=Ring NCCL_PROTO=Simple ...": all NCCL settings in the environment, ours and the user's, except
// those that name a host. For logs and checkpoints, since sums depend on them.
[[nodiscard]] std::string nccl_settings();

// Channels (thread blocks) of each NCCL communicator under kExclusive, unless the user sets others. Between
// two H200 this is as fast as NCCL's own choice (24 for collectives, 32 for all-to-all); with 16 a step was 2
// % slower.
inline constexpr int kNcclChannels = 24;
inline constexpr int kSharedNcclChannels =
    2;  // the most under kShared: the blocks of all ranks must fit on the GPU at the same time

// An estimate of the device memory, in bytes, that NCCL takes on this rank for all groups of the layout:
// kernels, buffers for the two neighbours in each ring, and buffers for each peer of an all-to-all, which tokens
// take. Fitted to measurements of two ranks (tests/gpu/overlap.sh prints them); not measured for more. 0 for one rank.
[[nodiscard]] int64_t nccl_bytes(const Mesh& mesh, int64_t kv_heads, GpuUse use,
                                 ExpertExchange exchange = ExpertExchange::kTokens);

// The device communicator of several ranks, for open_gpu_world.
[[nodiscard]] std::unique_ptr<Communicator> nccl_world(std::unique_ptr<Communicator> host, int gpu,
                                                       GpuUse use);

}  // namespace pesc
