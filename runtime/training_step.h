// One optimizer step over a global batch: accumulation, token-weighted loss, balance loss, reduction,
// clipping, AdamW, and what is counted on the way.
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
  int64_t step = 0;  // done before this one
  double lr = 0;
  std::vector<LocalBatch> micro_batches;  // this rank's share of each
  bool flag = false;                      // whatever one rank wants all to know of (preemption)
  RoutingTape* tape = nullptr;
  Poison poison = Poison::kNone;  // for tests: of this rank's gradient, or of its share of the loss
};

struct StepOutput {
  StepMetrics metrics;
  bool flagged = false;  // some rank's input had the flag
  bool updated = true;   // as before_update said
};

// Loss and gradient norm.
[[nodiscard]] bool is_finite(const StepMetrics& m);

// Asked, the same on all ranks, once loss and gradient norm are known and nothing has been updated: shall the
// weights be? It may throw. Without an update the step can be run again.
enum class Update { kApply, kDiscard };
using BeforeUpdate = std::function<Update(const StepMetrics&)>;

class TrainingStep {
 public:
  TrainingStep(Job& job, Decoder& decoder, std::vector<std::string> tags)
      : job_(job), decoder_(decoder), tags_(std::move(tags)) {}

  // Collective over world. `metrics.light_seconds` and `metrics.steps` are the caller's to fill.
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
