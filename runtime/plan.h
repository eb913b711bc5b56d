// The memory of a rank by arena, the FLOP, the bytes sent and the time of a step of a training run, computed
// without its device.
//
// The time is a sum of phases. A phase takes the larger of its FLOP over the arithmetic rate and its bytes
// over the memory or link rate. With quantised weights the GEMMs take longer by what is made before each of
// them: dequantised or transposed weights, quantised tokens. Where collectives overlap (parallel.overlap_comm on
// CUDA), the plan assumes that the reduction of all gradients but those of layer 0 is hidden by the backward, half
// of a token exchange in two chunks by the FFN, and the gathers of weights and the reduction of their gradients by
// the other layers, as far as those take long enough. It assumes balanced experts and full rows.
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
  double flops = 0;      // of one rank and step
  double bytes = 0;      // of device memory, what is made first included
  double sent = 0;       // by one rank
  double seconds = 0;    // from the rates, without what overlaps with other phases
  double made = 0;       // of `bytes`, those of what is made first
  double fp8_flops = 0;  // of `flops`, those at the rate of FP8
};

// What one expert exchange takes of a rank and step.
struct PlannedExchange {
  double sent = 0;     // bytes
  double seconds = 0;  // that nothing hides
};

struct Plan {
  int world = 1, dp = 1, tp = 1, ep = 1;
  DeviceMemory memory;                // of rank 0, which takes the most
  int64_t host_bytes = 0;             // of a rank: the copy that a checkpoint writes from
  int64_t trainable = 0, frozen = 0;  // parameters of the whole model
  double tokens = 0;                  // of a step, over all ranks
  double flops = 0;                   // of a step, over all ranks: training_flops
  double fp8_flops = 0;               // of them, those of frozen linears that are multiplied in FP8
  double bytes_per_weight = 0;        // of the frozen linears, scales included
  std::vector<PlanPhase> phases;
  double seconds = 0;       // of a step
  double sol_seconds = 0;   // flops over the GEMM rates of all ranks: speed of light
  double peak_seconds = 0;  // flops over the data sheets' FLOP/s of all ranks: MFU; 0: not known
  // Bytes sent per token for the token exchange, forward and backward; 0 with WEIGHTS.
  double exchanged_per_token = 0;
  ExpertExchange exchange = ExpertExchange::kTokens;  // the chosen one, and what both would take: with ep > 1
  PlannedExchange tokens_exchange, weights_exchange;
};

[[nodiscard]] Plan make_plan(const ExperimentConfig& config, const ModelConfig& model, int world,
                             const MachineRates& rates);

}  // namespace pesc
