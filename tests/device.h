// The device of the tests of parallel and model: the CPU, or with PESC_TEST_DEVICE=cuda in the environment
// GPUs that the ranks may share (ctest's label gpu runs the same programs so).
#pragma once

#include <cstdlib>
#include <memory>
#include <string_view>

#include "parallel/gpu_world.h"
#include "parallel/mpi_session.h"

namespace pesc {

[[nodiscard]] inline bool test_on_gpu() {
  const char* device = std::getenv("PESC_TEST_DEVICE");
  return device != nullptr && std::string_view(device) == "cuda";
}

[[nodiscard]] inline Device test_device(int threads = 1) {
  if (!test_on_gpu()) return {.threads = threads};
  const MpiSession session;
  return {DeviceKind::kCuda, gpu_of_rank(session.local_rank()), threads};
}

// All ranks, with collectives over memory of that device.
[[nodiscard]] inline std::unique_ptr<Communicator> test_world(const MpiSession& session) {
  std::unique_ptr<Communicator> host = session.world();
  if (!test_on_gpu()) return host;
  return open_gpu_world(*host, test_device().index, GpuUse::kShared);
}

}  // namespace pesc
