// The learning rate of each step.
#pragma once

#include <cstdint>

namespace pesc {

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

}  // namespace pesc
