// A build without NCCL: see parallel/gpu_world.h.
#include "parallel/gpu_world.h"

namespace pesc {

std::unique_ptr<Communicator> nccl_world(std::unique_ptr<Communicator> host, int /*gpu*/, GpuUse /*use*/) {
  throw UsageError(
      str_cat("parallel.device: CUDA on ", host->size(),
              " ranks needs NCCL, and this pesc was built without it; install NCCL (libnccl-dev), "
              "configure again and build, or start one rank"));
}

std::string nccl_version() {
  return "built without NCCL";
}

}  // namespace pesc
