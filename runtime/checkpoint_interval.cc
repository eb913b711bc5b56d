#include "runtime/checkpoint_interval.h"

#include <cmath>

namespace pesc {

double goodput(const FailureCosts& c, double interval) {
  const double wall = c.mtbf * std::exp(c.restart / c.mtbf) * std::expm1((interval + c.save) / c.mtbf);
  return interval / wall;
}

double best_save_interval(const FailureCosts& c) {
  if (c.save >= 2 * c.mtbf) return c.mtbf;
  const double x = c.save / (2 * c.mtbf);
  return std::sqrt(2 * c.save * c.mtbf) * (1 + std::sqrt(x) / 3 + x / 9) - c.save;
}

}  // namespace pesc
