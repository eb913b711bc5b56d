// Whether a run fits into the memory of its devices, and which changes would make it fit. `pesc plan` checks
// against a machine's memory, the check before loading against the free memory of a GPU.
#pragma once

#include <string>
#include <vector>

#include "model/device_memory.h"
#include "runtime/decoder_options.h"

namespace pesc {

struct MemoryRoom {
  enum class Of {
    kRank,  // `bytes` is the memory of each rank
    kHost,  // `bytes` is the memory that all ranks of the host share
  };
  enum class Against {
    kAll,     // all memory of the rank counts
    kToCome,  // only DeviceMemory::to_come counts
  };
  enum class Fp8 {
    kNo,
    kMultiplied,  // the device multiplies FP8: weights may be held and multiplied in it
  };
  double bytes = 0;  // 0: not known; then everything fits
  Of of = Of::kRank;
  Against against = Against::kAll;
  Fp8 fp8 = Fp8::kNo;
  [[nodiscard]] double of_rank(int world) const { return of == Of::kHost ? bytes / world : bytes; }
};

// The bytes that count against the room, of the rank that takes the most. On a CPU the host copy from which a
// checkpoint is written counts too.
[[nodiscard]] double needed_bytes(const ExperimentConfig& config, const ModelConfig& model, int world,
                                  const DecoderUse& use, MemoryRoom::Against against);

// The bytes of the host copy from which a rank writes its part of a checkpoint.
[[nodiscard]] int64_t planned_snapshot_bytes(const ModelParameters& parameters, const Mesh& mesh,
                                             int64_t kv_heads);
// How many ranks hold the same piece of a parameter.
[[nodiscard]] int replicas_of(ReplicaGroup group, const Mesh& mesh, int64_t kv_heads);

// Changes each of which makes the run fit: "train.recompute_granularity: SELECTIVE needs 63.5 GiB",
// "parallel.tp: 2 and parallel.ep: 8 needs 40.1 GiB". For each field the smallest sufficient change: the next
// level of recomputation, the largest smaller micro-batch (with a note that it changes the aux loss), shorter
// rows, frozen weights in FP8 (where the device multiplies it) or NF4 (with a note of what is rounded; of a folder that
// is quantised its own format alone), other layouts, more ranks. Where no single change of another field than train.frozen_dtype suffices, the smallest
// combination of them; and where that format suffices only with others, the smallest combination with it. Empty
// when nothing fits on up to kMostRanks times as many ranks.
inline constexpr int kMostRanks = 64;
[[nodiscard]] std::vector<std::string> what_would_fit(const ExperimentConfig& config,
                                                      const ModelConfig& model, int world,
                                                      const DecoderUse& use, const MemoryRoom& room);

// A GPU that ranks are about to load on.
struct GpuToLoad {
  int index = 0;
  cuda::DeviceInfo info;
  int ranks = 1;  // the number of ranks that share it (debug.share_gpu)
};
// The check before loading. Throws UsageError, in one line with what would fit, where the GPU has too little
// free memory. Needs no GPU itself.
void check_memory(const ExperimentConfig& config, const ModelConfig& model, int world, const DecoderUse& use,
                  const GpuToLoad& gpu);

}  // namespace pesc
