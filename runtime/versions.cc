#include "runtime/versions.h"

#include "ops/gemm.h"
#include "parallel/gpu_world.h"
#include "parallel/mpi_session.h"

namespace pesc {

std::map<std::string, std::string> library_versions(const Device& device) {
  std::map<std::string, std::string> versions = {{"pesc", PESC_VERSION},
                                                 {"compiler", __VERSION__},
                                                 {"march", PESC_MARCH_NAME},
                                                 {"gemm", gemm_library()},
                                                 {"mpi", MpiSession::library_version()}};
  if (device.kind == DeviceKind::kCuda) {
    const cuda::DeviceInfo gpu = cuda::device_info(device.index);
    versions["gemm"] = gpu.versions;
    versions["gpu"] = gpu.name;
    versions["nccl"] = nccl_version();
    versions["nccl_settings"] = nccl_settings();
  }
  return versions;
}

}  // namespace pesc
