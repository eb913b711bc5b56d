// The device memory of one rank of a run. `pesc plan`, the check before loading (runtime/fitting.h) and `pesc
// bench` all use this sum.
#pragma once

#include <cstdint>
#include <vector>

#include "model/decoder.h"

namespace pesc {

// In bytes.
struct DeviceMemory {
  std::vector<ArenaSize> arenas;  // the scratch arena has room for timing GEMMs
  int64_t stream_workspaces = 0;  // workspaces of the rank's streams
  int64_t connections = 0;        // NCCL's kernels and buffers: nccl_bytes
  int64_t libraries = 0;          // kernels that the driver and the libraries load while the run lasts
  int64_t context = 0;            // CUDA's context; on the CPU the program, its libraries and its threads

  [[nodiscard]] int64_t arena_bytes() const;
  // Everything except arenas and NCCL.
  [[nodiscard]] int64_t overhead() const { return stream_workspaces + libraries + context; }
  [[nodiscard]] int64_t all() const { return arena_bytes() + connections + overhead(); }
  // Everything except the CUDA context: what a rank that has opened its GPU will still allocate. The check
  // before loading compares it with the free memory.
  [[nodiscard]] int64_t to_come() const { return all() - context; }
};

// The memory of mesh.rank(); rank 0 of a layout takes the most. Needs neither a device nor other ranks.
[[nodiscard]] DeviceMemory device_memory(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                                         const DecoderOptions& options);

}  // namespace pesc
