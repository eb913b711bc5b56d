#include "runtime/config/learning_rate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace pesc {

double LearningRate::at(int64_t step) const {
  if (step < warmup) return lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (schedule == Schedule::kConstant || total <= warmup) return lr;
  const double t = std::min(1.0, static_cast<double>(step - warmup) / static_cast<double>(total - warmup));
  const double falling =
      schedule == Schedule::kLinear ? 1.0 - t : 0.5 * (1.0 + std::cos(std::numbers::pi * t));
  return lr * (min_ratio + (1.0 - min_ratio) * falling);
}

}  // namespace pesc
