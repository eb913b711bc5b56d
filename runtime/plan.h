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

#include "model/device_memory.h"
#include "runtime/config/experiment.h"
#include "runtime/machine.h"

namespace pesc {

struct PlanPhase {
  std::string name;
  double flops = 0;    // of one rank and step
  double bytes = 0;    // of device memory
  double sent = 0;     // by one rank
  double seconds = 0;  // from the rates: what of it nothing else hides
};

struct Plan {
  int world = 1, dp = 1, tp = 1, ep = 1;
  DeviceMemory memory;              // of rank 0, which takes the most
  int64_t host_bytes = 0;           // of a rank: the copy that a checkpoint writes from
  int64_t trained = 0, frozen = 0;  // parameters of the whole model
  double tokens = 0;                // of a step, over all ranks
  double flops = 0;                 // of a step, over all ranks: training_flops
  std::vector<PlanPhase> phases;
  double seconds = 0;              // of a step
  double light_seconds = 0;        // flops over the GEMM rate of all ranks
  double exchanged_per_token = 0;  // bytes that a token's rows take over the links, forward and backward
};

[[nodiscard]] Plan make_plan(const ExperimentConfig& config, const ModelConfig& model, int world,
                             const MachineRates& rates);

}  // namespace pesc
