// What a training run will take, before it starts and without its device: memory of a rank by arena, FLOP,
// bytes that travel, and the time of a step from stated rates.
//
// The time is a sum of phases, each the larger of FLOP over a rate of arithmetic and bytes over a rate of
// memory or of the links. Where collectives overlap (parallel.overlap on CUDA), the gradients of all layers
// but the last are taken as summed behind the backward, and half of an exchange in two chunks as hidden by
// the FFN. Experts are taken as balanced, rows as full.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "runtime/config/experiment.h"

namespace pesc {

// Of one rank. FLOP/s, bytes/s, bytes.
struct MachineRates {
  double gemm = 0;       // large matrix products in the compute type
  double attention = 0;  // causal attention, forward and backward
  double memory = 0;     // reading and writing device memory
  double link = 0;       // sending to another rank
  double device_memory = 0;
  double overhead = 0;  // bytes beside the arenas: context, library workspaces
};
// An H200 for CUDA; two thirds of a core of a 2024 server for each thread of the CPU.
[[nodiscard]] MachineRates usual_rates(DeviceKind device, DType compute, int threads);

struct PlanPhase {
  std::string name;
  double flops = 0;    // of one rank and step
  double bytes = 0;    // of device memory
  double sent = 0;     // by one rank
  double seconds = 0;  // from the rates: what of it nothing else hides
};

struct Plan {
  int world = 1, dp = 1, tp = 1, ep = 1;
  std::vector<ArenaSize> arenas;    // of rank 0, which holds the most
  int64_t connection_bytes = 0;     // NCCL's, on the device
  int64_t host_bytes = 0;           // of a rank: the copy that a checkpoint writes from
  int64_t trained = 0, frozen = 0;  // parameters of the whole model
  double tokens = 0;                // of a step, over all ranks
  double flops = 0;                 // of a step, over all ranks: training_flops
  std::vector<PlanPhase> phases;
  double seconds = 0;              // of a step
  double light_seconds = 0;        // flops over the GEMM rate of all ranks
  double exchanged_per_token = 0;  // bytes that a token's rows take over the links, forward and backward
  [[nodiscard]] int64_t device_bytes() const;  // of the arenas
  [[nodiscard]] double all_bytes(const MachineRates& rates) const;
};

[[nodiscard]] Plan make_plan(const ExperimentConfig& config, const ModelConfig& model, int world,
                             const MachineRates& rates);

// Changes that make the plan fit into `device_memory`, each by itself: "train.recompute: CHEAP needs 63.5
// GiB", "train.micro_batch: 16 needs 88.1 GiB".
[[nodiscard]] std::vector<std::string> what_would_fit(const ExperimentConfig& config,
                                                      const ModelConfig& model, int world,
                                                      const MachineRates& rates);

}  // namespace pesc
