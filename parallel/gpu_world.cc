#include "parallel/gpu_world.h"

#include <map>

#include "parallel/solo_communicator.h"

namespace pesc {

int gpu_of_rank(int local_rank) {
  // A scheduler may show each rank a GPU of its own, the only one that it sees.
  const int count = cuda::device_count();
  const int gpu = count > 0 ? local_rank % count : 0;
  (void)cuda::device_info(gpu);
  return gpu;
}

std::unique_ptr<Communicator> open_gpu_world(Communicator& host, int gpu, GpuUse use) {
  const cuda::DeviceInfo info = cuda::device_info(gpu);
  const std::vector<std::string> ids = host.host_all_gather(info.id);
  std::map<std::string, size_t> taken;
  for (size_t rank = 0; rank < ids.size() && use == GpuUse::kExclusive; ++rank) {
    const auto [other, is_new] = taken.try_emplace(ids[rank], rank);
    if (is_new) continue;
    throw UsageError(
        str_cat("parallel.device: CUDA: ranks ", other->second, " and ", rank,
                " would share one GPU: there are more ranks than GPUs on their host; start at most one "
                "rank per GPU, or set parallel.share_gpu: true (a test mode, slow)"));
  }
  std::unique_ptr<Communicator> own = host.split(0, host.name());
  if (own->size() == 1) return solo_communicator(std::move(own));
  return nccl_world(std::move(own), gpu, use);
}

}  // namespace pesc
