#include "parallel/gpu_world.h"

#include <unistd.h>

#include <map>
#include <set>
#include <string_view>

#include "parallel/gradient_reduction.h"
#include "parallel/solo_communicator.h"

namespace pesc {

int gpu_of_rank(int local_rank) {
  // A scheduler may show each rank only its own GPU.
  const int count = cuda::device_count();
  const int gpu = count > 0 ? local_rank % count : 0;
  (void)cuda::device_info(gpu);
  return gpu;
}

void check_one_rank_per_gpu(Communicator& host, const std::string& gpu_id) {
  const std::vector<std::string> ids = host.host_all_gather(gpu_id);
  std::map<std::string, size_t> taken;
  for (size_t rank = 0; rank < ids.size(); ++rank) {
    const auto [other, is_new] = taken.try_emplace(ids[rank], rank);
    if (is_new) continue;
    throw UsageError(
        str_cat("parallel.device: CUDA: ranks ", other->second, " and ", rank,
                " would share one GPU: there are more ranks than GPUs on their host; start at most one "
                "rank per GPU, or set debug.share_gpu: true (a test mode, slow)"));
  }
}

std::string nccl_version_text(int64_t version) {
  return str_cat("NCCL ", version / 10000, ".", version / 100 % 100, ".", version % 100);
}

void check_same_nccl(Communicator& host, int64_t version) {
  const std::vector<int64_t> versions = host.host_all_gather(std::span(&version, 1));
  for (size_t rank = 1; rank < versions.size(); ++rank) {
    if (versions[rank] == versions[0]) continue;
    throw UsageError(str_cat("parallel.device: CUDA: rank 0 has ", nccl_version_text(versions[0]),
                             " and rank ", rank, " has ", nccl_version_text(versions[rank]),
                             "; install the same NCCL on all hosts"));
  }
}

std::string nccl_settings() {
  std::set<std::string> found;
  for (char** at = environ; *at != nullptr; ++at) {
    const std::string_view setting = *at;
    if (setting.starts_with("NCCL_") && !setting.starts_with("NCCL_HOSTID=")) found.emplace(setting);
  }
  std::string all;
  for (const std::string& setting : found) all += (all.empty() ? "" : " ") + setting;
  return all;
}

int64_t nccl_bytes(const Mesh& mesh, int64_t kv_heads, GpuUse use, ExpertExchange exchange) {
  if (mesh.world() == 1) return 0;
  // Measured on two H200 with NCCL 2.28 and 24 channels: 0.78 GiB more than one rank takes for the first
  // group, 0.47 for each further group, 0.44 for an all-to-all.
  constexpr int64_t kMiB = int64_t{1} << 20;
  constexpr int64_t kKernels = 312 * kMiB, kRing = 20 * kMiB, kPeer = 19 * kMiB;  // the latter of a channel
  const int64_t channels = use == GpuUse::kShared ? kSharedNcclChannels : kNcclChannels;
  std::set<std::vector<int>> rings = {mesh.tp_members()};
  for (int g = 0; g < kReplicaGroups; ++g)
    rings.insert(replica_members(static_cast<ReplicaGroup>(g), mesh, kv_heads));
  const bool tokens = exchange == ExpertExchange::kTokens;
  if (!tokens) rings.insert(mesh.ep_members());
  int64_t bytes = kKernels + (tokens ? mesh.ep() - 1 : 0) * kPeer * channels;
  for (const std::vector<int>& group : rings)
    if (group.size() > 1) bytes += kRing * channels;
  return bytes;
}

std::unique_ptr<Communicator> open_gpu_world(Communicator& host, int gpu, GpuUse use) {
  const cuda::DeviceInfo info = cuda::device_info(gpu);
  if (use == GpuUse::kExclusive) check_one_rank_per_gpu(host, info.id);
  std::unique_ptr<Communicator> own = host.split(0, host.name());
  if (own->size() == 1) return solo_communicator(std::move(own));
  return nccl_world(std::move(own), gpu, use);
}

}  // namespace pesc
