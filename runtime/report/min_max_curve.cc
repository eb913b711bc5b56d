#include "runtime/report/min_max_curve.h"

#include <algorithm>
#include <cmath>

#include "ops/core/check.h"

namespace pesc {

MinMaxCurve::MinMaxCurve(size_t most) : most_(most) {
  PESC_CHECK(most >= 2 && most % 2 == 0, "a curve of ", most, " buckets");
}

void MinMaxCurve::add(int64_t step, double value) {
  if (!std::isfinite(value)) {
    ++not_finite_;
    return;
  }
  if (buckets_.size() == most_ && buckets_.back().points == width_) {
    for (size_t i = 0; i < most_ / 2; ++i) {
      const Bucket &a = buckets_[2 * i], &b = buckets_[2 * i + 1];
      buckets_[i] = {
          a.first,      b.last, a.points + b.points, std::min(a.min, b.min), std::max(a.max, b.max),
          a.sum + b.sum};
    }
    buckets_.resize(most_ / 2);
    width_ *= 2;
  }
  if (buckets_.empty() || buckets_.back().points == width_)
    buckets_.push_back({step, step, 0, value, value, 0});
  Bucket& bucket = buckets_.back();
  bucket.last = step;
  ++bucket.points;
  bucket.min = std::min(bucket.min, value);
  bucket.max = std::max(bucket.max, value);
  bucket.sum += value;
}

}  // namespace pesc
