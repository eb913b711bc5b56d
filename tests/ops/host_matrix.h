// A float32 matrix of a test: random values, rows further apart than they need when `gap` > 0; the gaps hold
// kGap and must stay so.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "ops/core/tensor.h"

namespace pesc {

struct HostMatrix {
  static constexpr float kGap = -77.0F;
  std::vector<float> data;
  Tensor view;

  HostMatrix(int64_t rows, int64_t cols, int64_t gap = 0, float value = 0)
      : data(static_cast<size_t>(rows * (cols + gap)), kGap),
        view{data.data(), DType::kF32, rows, cols, cols + gap} {
    fill(value);
  }
  HostMatrix(const HostMatrix& other) : data(other.data), view(other.view) { view.data = data.data(); }
  HostMatrix& operator=(const HostMatrix&) = delete;

  // Normal values of the given deviation, a function of the seed and of the shape without the gap.
  [[nodiscard]] static HostMatrix normal(int64_t rows, int64_t cols, unsigned seed, int64_t gap = 0,
                                         float deviation = 1) {
    HostMatrix out(rows, cols, gap);
    std::mt19937 random(seed);
    std::normal_distribution<float> values(0, deviation);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) out(r, c) = values(random);
    return out;
  }

  float& operator()(int64_t r, int64_t c) { return data[static_cast<size_t>(r * view.ld + c)]; }
  float operator()(int64_t r, int64_t c) const { return data[static_cast<size_t>(r * view.ld + c)]; }

  void fill(float value) {
    for (int64_t r = 0; r < view.rows; ++r)
      for (int64_t c = 0; c < view.cols; ++c) (*this)(r, c) = value;
  }
  [[nodiscard]] bool gaps_untouched() const {
    for (int64_t r = 0; r < view.rows; ++r)
      for (int64_t c = view.cols; c < view.ld; ++c)
        if ((*this)(r, c) != kGap) return false;
    return true;
  }
  // Row-major, without the gaps.
  [[nodiscard]] std::vector<double> values() const {
    std::vector<double> out;
    for (int64_t r = 0; r < view.rows; ++r)
      for (int64_t c = 0; c < view.cols; ++c) out.push_back((*this)(r, c));
    return out;
  }
};

// max |a - b| / max |b|, the relative error of tests/README.md; max |a - b| where b is zero.
[[nodiscard]] inline double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  PESC_CHECK(a.size() == b.size(), a.size(), " against ", b.size(), " values");
  double worst = 0;
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, std::abs(a[i] - b[i]));
    largest = std::max(largest, std::abs(b[i]));
  }
  return largest > 0 ? worst / largest : worst;
}

}  // namespace pesc
