// Whether a run fits into the memory of its devices, and what makes one fit that does not. `pesc plan` asks
// with a machine's memory, the check before loading with what is free of a GPU.
#pragma once

#include <string>
#include <vector>

#include "model/device_memory.h"
#include "runtime/decoder_options.h"

namespace pesc {

struct MemoryRoom {
  enum class Of {
    kRank,  // each rank has so much
    kHost,  // all ranks together do
  };
  enum class Against {
    kAll,     // what the rank takes
    kToCome,  // DeviceMemory::to_come
  };
  double bytes = 0;  // 0: not known, and everything fits
  Of of = Of::kRank;
  Against against = Against::kAll;
  [[nodiscard]] double of_rank(int world) const { return of == Of::kHost ? bytes / world : bytes; }
};

// What counts against the room, of the rank of a layout that takes the most. In host memory (a CPU) the copy
// that a checkpoint is written from counts too.
[[nodiscard]] double needed_bytes(const ExperimentConfig& config, const ModelConfig& model, int world,
                                  const DecoderUse& use, MemoryRoom::Against against);

// The host memory, in bytes, from which a rank writes its part of a checkpoint.
[[nodiscard]] int64_t planned_snapshot_bytes(const ModelParameters& parameters, const Mesh& mesh,
                                             int64_t kv_heads);
// How many ranks hold the same piece of a parameter.
[[nodiscard]] int replicas_of(ReplicaGroup group, const Mesh& mesh, int64_t kv_heads);

// Changes that make it fit, each by itself: "train.recompute: CHEAP needs 63.5 GiB", "parallel.tp: 2 and
// parallel.ep: 8 needs 40.1 GiB". Of each field the mildest change: the next level of recomputation, the
// largest smaller micro-batch (which says that it changes the balance loss), shorter rows, the layouts, more
// ranks. Where none of them does by itself, the mildest that do together. Empty: nothing does, on up to
// kMostRanks times as many ranks.
inline constexpr int kMostRanks = 64;
[[nodiscard]] std::vector<std::string> what_would_fit(const ExperimentConfig& config,
                                                      const ModelConfig& model, int world,
                                                      const DecoderUse& use, const MemoryRoom& room);

// A GPU that ranks are about to load on.
struct GpuToLoad {
  int index = 0;
  cuda::DeviceInfo info;
  int ranks = 1;  // that share it (parallel.share_gpu)
};
// The check before loading. Throws UsageError, in one line with what would fit, where the GPU has too little
// free memory. Needs no GPU itself.
void check_memory(const ExperimentConfig& config, const ModelConfig& model, int world, const DecoderUse& use,
                  const GpuToLoad& gpu);

}  // namespace pesc
