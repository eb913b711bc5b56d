// Ranks with GPUs: which GPU a rank takes, and the communicator of all of them, with device collectives over
// NCCL and host collectives over the communicator that they were started with.
#pragma once

#include <memory>

#include "parallel/communicator.h"
#include "parallel/mesh.h"

namespace pesc {

// Whether several ranks may use one GPU. kShared is a test mode: NCCL then takes every rank for a host of its
// own (a distinct NCCL_HOSTID, set before the first NCCL call) and moves data through sockets.
enum class GpuUse { kExclusive, kShared };

// The GPU of the rank with this number on its host: GPU local_rank, or the only one that it sees. Local.
// Throws UsageError when there is no usable GPU.
[[nodiscard]] int gpu_of_rank(int local_rank);

// Collective over `host`. Throws UsageError, on all ranks alike, when ranks would share a GPU under
// kExclusive, when their NCCL versions differ, or when there are several ranks and this pesc was built
// without NCCL.
[[nodiscard]] std::unique_ptr<Communicator> open_gpu_world(Communicator& host, int gpu, GpuUse use);

// The parts of these refusals that need no GPU. Collective over `host`; they throw UsageError on all ranks
// alike. `gpu_id` names the board that this rank would use; `version` is NCCL's number of its own version.
void check_one_rank_per_gpu(Communicator& host, const std::string& gpu_id);
void check_same_nccl(Communicator& host, int64_t version);
// 22809 is "NCCL 2.28.9".
[[nodiscard]] std::string nccl_version_text(int64_t version);

// "NCCL 2.28.9", or that it is not there; for records.
[[nodiscard]] std::string nccl_version();
// "NCCL_ALGO=Ring NCCL_PROTO=Simple ...": the environment's settings of NCCL, this project's and the user's,
// but for those that name a host; for records, since sums depend on them.
[[nodiscard]] std::string nccl_settings();

// Channels (thread blocks) of each of NCCL's communicators, where ranks have GPUs of their own and the user
// does not say otherwise. Between two H200 as quick as NCCL's own choice, 24 for collectives and 32 for an
// exchange; 16 were 2 % of a step slower.
inline constexpr int kNcclChannels = 24;
inline constexpr int kSharedNcclChannels =
    2;  // at most, of ranks that share: all of them must fit beside each other

// Device memory, in bytes, that NCCL takes on this rank for all of the layout's groups: its kernels, buffers
// towards the neighbours in each ring, and towards each peer of an exchange. An estimate from measurements of
// two ranks (tests/gpu/overlap.sh prints such); of more, nobody has measured it. 0 for one rank.
[[nodiscard]] int64_t nccl_bytes(const Mesh& mesh, int64_t kv_heads, GpuUse use);

// For open_gpu_world: the device communicator of several ranks.
[[nodiscard]] std::unique_ptr<Communicator> nccl_world(std::unique_ptr<Communicator> host, int gpu,
                                                       GpuUse use);

}  // namespace pesc
