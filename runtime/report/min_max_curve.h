// A curve of any number of points, kept in a bounded number of buckets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pesc {

// Each bucket has the lowest, the highest and the mean value of as many consecutive points as every other one
// (the last may have fewer), so that a spike of a single step stays visible. When all are full, neighbours are
// merged; there are then between half of `most` and `most` buckets.
class MinMaxCurve {
 public:
  struct Bucket {
    int64_t first = 0, last = 0;  // steps
    int64_t points = 0;
    double min = 0, max = 0, sum = 0;
    [[nodiscard]] double mean() const { return sum / static_cast<double>(points); }
  };

  explicit MinMaxCurve(size_t most = 1000);  // an even number of at least 2
  // REQUIRES: ascending steps. A value that is not finite is left out, and counted.
  void add(int64_t step, double value);

  [[nodiscard]] const std::vector<Bucket>& buckets() const { return buckets_; }
  [[nodiscard]] int64_t not_finite() const { return not_finite_; }

 private:
  size_t most_;
  int64_t width_ = 1;  // points of a full bucket
  int64_t not_finite_ = 0;
  std::vector<Bucket> buckets_;
};

}  // namespace pesc
