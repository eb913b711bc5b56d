// The memory that one rank of a run takes of its device: the only place that adds it up. `pesc plan`, the
// check before loading (runtime/fitting.h) and `pesc bench` ask here.
#pragma once

#include <cstdint>
#include <vector>

#include "model/decoder.h"

namespace pesc {

// In bytes.
struct DeviceMemory {
  std::vector<ArenaSize> arenas;  // the scratch among them has room for the timing of matrix products
  int64_t queues = 0;             // workspaces of the rank's streams
  int64_t connections = 0;        // NCCL's kernels and buffers: nccl_bytes
  int64_t libraries = 0;          // kernels that the driver and the libraries load while the run lasts
  int64_t context = 0;            // CUDA's context; on the CPU the program, its libraries and its threads

  [[nodiscard]] int64_t arena_bytes() const;
  // Beside arenas and NCCL.
  [[nodiscard]] int64_t overhead() const { return queues + libraries + context; }
  [[nodiscard]] int64_t all() const { return arena_bytes() + connections + overhead(); }
  // What is still to be taken once a rank has opened its GPU, and so CUDA's context: the check before loading
  // compares this with the memory that is free.
  [[nodiscard]] int64_t to_come() const { return all() - context; }
};

// Of the rank that `mesh` names; rank 0 of a layout takes the most. Needs neither a device nor ranks.
[[nodiscard]] DeviceMemory device_memory(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                                         const DecoderOptions& options);

}  // namespace pesc
