// One optimizer step over a global batch: accumulation over micro-batches, token-weighted loss, aux loss,
// reduction, clipping, AdamW, and the step's metrics. runtime/README.md walks through a step.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/data/sampler.h"
#include "runtime/job.h"
#include "runtime/metrics.h"
#include "runtime/recovery/fault.h"

namespace pesc {

struct StepInput {
  int64_t step = 0;  // steps done before this one
  double lr = 0;
  std::vector<LocalBatch> micro_batches;  // this rank's share of each
  bool flag = false;                      // the output's `flagged` tells all ranks that one rank set it
  RouterReplay* router_replay = nullptr;
  InjectedFault injected = InjectedFault::kNone;  // for tests: a corruption of this rank's numbers
};

struct StepOutput {
  StepMetrics metrics;
  bool flagged = false;  // some rank's input had the flag (preemption)
  bool updated = true;   // what before_update returned
};

// Whether loss and gradient norm are finite.
[[nodiscard]] bool is_finite(const StepMetrics& m);

// Called on all ranks with the same metrics, after loss and gradient norm are known and before the update:
// decides whether the weights are updated. It may throw. After kDiscard the step can be run again.
enum class Update { kApply, kDiscard };
using BeforeUpdate = std::function<Update(const StepMetrics&)>;

class TrainingStep {
 public:
  TrainingStep(Job& job, Decoder& decoder, std::vector<std::string> tags)
      : job_(job), decoder_(decoder), tags_(std::move(tags)) {}

  // Runs the step. Collective over world. The caller fills metrics.sol_seconds, metrics.peak_seconds and
  // metrics.steps.
  [[nodiscard]] StepOutput run(const StepInput& input, const BeforeUpdate& before_update);

 private:
  struct Counts;
  [[nodiscard]] std::vector<double> count_tokens(const StepInput& input) const;
  void count_routing(const std::vector<int32_t>& tags, double layers_and_micros, Counts& counts,
                     StepMetrics& metrics);
  void add_shares(const Counts& counts, const std::vector<double>& sums, StepMetrics& metrics) const;

  Job& job_;
  Decoder& decoder_;
  std::vector<std::string> tags_;
};

}  // namespace pesc
