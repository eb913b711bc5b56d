// The optimizer step over sharded parameters: reduction of gradients, the global norm counted once, clipping,
// AdamW.
#pragma once

#include <cstdint>

#include "model/decoder.h"
#include "parallel/gradient_reduction.h"

namespace pesc {

struct AdamWConfig {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double clip_norm = 0;  // 0: no clipping
};

enum class Schedule { kConstant, kLinear, kCosine };

// Learning rate of step 0, 1, ...: rises linearly over `warmup` steps, then stays, or falls to min_ratio * lr
// at `total` steps linearly or by half a cosine.
struct LearningRate {
  double lr = 0;
  Schedule schedule = Schedule::kConstant;
  int64_t warmup = 0;
  int64_t total = 0;
  double min_ratio = 0;
  [[nodiscard]] double at(int64_t step) const;
};

// Sums the gradients over the ranks that hold the same pieces, and returns the norm over every trained
// parameter counted once, before clipping. Collective over world.
[[nodiscard]] double reduce_gradients(Decoder& decoder, Communicator& world,
                                      const GradientReduction& reduction);

// One AdamW update; `update` is 1 at the first. The clipping factor is min(1, clip / (norm + 1e-6)).
void optimizer_step(Decoder& decoder, const AdamWConfig& config, double lr, int64_t update, double norm);

}  // namespace pesc
