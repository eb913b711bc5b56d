// What the tests of the operations share besides host_matrix.h: float64 matrices for the references, and
// gradients by central differences.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "tests/ops/host_matrix.h"

namespace pesc {

// A row-major float64 matrix of a reference.
struct Matrix64 {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<double> data;

  Matrix64() = default;
  Matrix64(int64_t r, int64_t c, double value = 0)
      : rows(r), cols(c), data(static_cast<size_t>(r * c), value) {}
  explicit Matrix64(const HostMatrix& m) : rows(m.view.rows), cols(m.view.cols), data(m.values()) {}

  double& operator()(int64_t r, int64_t c) { return data[static_cast<size_t>(r * cols + c)]; }
  double operator()(int64_t r, int64_t c) const { return data[static_cast<size_t>(r * cols + c)]; }
};

[[nodiscard]] inline double relative_error(const HostMatrix& a, const Matrix64& b) {
  return relative_error(a.values(), b.data);
}

// Random integers in [low, high], a function of the seed.
[[nodiscard]] inline std::vector<int32_t> random_ints(int64_t n, int32_t low, int32_t high, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int32_t> values(low, high);
  std::vector<int32_t> out(static_cast<size_t>(n));
  for (int32_t& v : out) v = values(random);
  return out;
}

// sum(a * b): the scalar of which a backward with output gradient b is the gradient.
[[nodiscard]] inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  PESC_CHECK(a.size() == b.size(), a.size(), " against ", b.size(), " values");
  double total = 0;
  for (size_t i = 0; i < a.size(); ++i) total += a[i] * b[i];
  return total;
}

// d loss / d x by central differences in float64 for a float64 reference.
[[nodiscard]] inline Matrix64 finite_differences(Matrix64 x,
                                                 const std::function<double(const Matrix64&)>& loss,
                                                 double step = 1e-5) {
  Matrix64 out(x.rows, x.cols);
  for (size_t i = 0; i < x.data.size(); ++i) {
    const double kept = x.data[i];
    x.data[i] = kept + step;
    const double above = loss(x);
    x.data[i] = kept - step;
    const double below = loss(x);
    x.data[i] = kept;
    out.data[i] = (above - below) / (2 * step);
  }
  return out;
}

// d loss / d x where `loss` runs the float32 operation on x itself; good to about 1e-2.
[[nodiscard]] inline Matrix64 finite_differences_f32(HostMatrix& x, const std::function<double()>& loss,
                                                     float step = 1e-2F) {
  Matrix64 out(x.view.rows, x.view.cols);
  for (int64_t r = 0; r < out.rows; ++r) {
    for (int64_t c = 0; c < out.cols; ++c) {
      const float kept = x(r, c);
      x(r, c) = kept + step;
      const double high = x(r, c);
      const double above = loss();
      x(r, c) = kept - step;
      const double low = x(r, c);
      const double below = loss();
      x(r, c) = kept;
      out(r, c) = (above - below) / (high - low);
    }
  }
  return out;
}

}  // namespace pesc
