#include "model/device_memory.h"

#include "parallel/gpu_world.h"

namespace pesc {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
// Of an H200 with CUDA 13: with the libraries' kernels and one CUDA stream it is 0.8 GiB.
constexpr int64_t kContextBytes = 531 * kMiB;
constexpr int64_t kProgramBytes = 154 * kMiB;  // of a rank on the CPU

}  // namespace

int64_t DeviceMemory::arena_bytes() const {
  int64_t bytes = 0;
  for (const ArenaSize& a : arenas) bytes += a.bytes;
  return bytes;
}

DeviceMemory device_memory(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                           const DecoderOptions& options) {
  DeviceMemory m;
  m.arenas = Decoder::plan(model, pesc, mesh, options);
  if (options.device.kind != DeviceKind::kCuda) {
    m.context = kProgramBytes;
    return m;
  }
  m.stream_workspaces = cuda::kCudaStreamBytes * (has_comm_stream(mesh, options) ? 2 : 1);
  m.connections =
      nccl_bytes(mesh, model.num_key_value_heads, options.gpu_use, options.capacity.expert_exchange);
  m.libraries = cuda::kLibraryBytes;
  m.context = kContextBytes;
  return m;
}

}  // namespace pesc
