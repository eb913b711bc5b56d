// FP8 rows from the definition of the format, in float64: every code is tried.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "tests/ops/host_matrix.h"

namespace pesc {

// Of a code without NaNs: 0x7F, 0xFF.
[[nodiscard]] inline double e4m3_value(int code) {
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1 + mantissa / 8.0, exponent - 7);
  return code >= 128 ? -magnitude : magnitude;
}

[[nodiscard]] inline uint8_t nearest_e4m3(float v) {
  const double magnitude = std::abs(static_cast<double>(v));
  int best = 0;
  for (int code = 1; code < 0x7F; ++code) {
    const double now = std::abs(magnitude - e4m3_value(code));
    const double before = std::abs(magnitude - e4m3_value(best));
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  return static_cast<uint8_t>(best | (std::signbit(v) ? 0x80 : 0));
}

// The least power of two, of 2^-126 and above, times 448 that reaches `largest`; 1 for 0.
[[nodiscard]] inline double reference_scale(float largest) {
  if (largest == 0) return 1;
  double scale = std::ldexp(1, -126);
  while (static_cast<double>(largest) > 448 * scale) scale *= 2;
  return scale;
}

[[nodiscard]] inline std::pair<std::vector<uint8_t>, double> reference_row(const std::vector<float>& row) {
  float largest = 0;
  for (const float v : row) largest = std::max(largest, std::abs(v));
  const double scale = reference_scale(largest);
  std::vector<uint8_t> codes;
  for (const float v : row) codes.push_back(nearest_e4m3(static_cast<float>(static_cast<double>(v) / scale)));
  return {codes, scale};
}

// Normal values, the rows of sizes from 2^-20 to 2^20, with values of which FP8 keeps subnormals or nothing.
[[nodiscard]] inline HostMatrix uneven_rows(int64_t rows, int64_t cols, unsigned seed, int64_t gap = 0) {
  HostMatrix x = HostMatrix::normal(rows, cols, seed, gap);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      x(r, c) *= std::ldexp(1.0F, static_cast<int>(r * 7 % 41) - 20 - (c % 5 == 4 ? 14 : 0));
  return x;
}

// A matrix of bytes.
class Codes {
 public:
  Codes(int64_t rows, int64_t cols, uint8_t value, DType type = DType::kE4M3)
      : data_(static_cast<size_t>(rows * cols), value), view{data_.data(), type, rows, cols, cols} {}
  Codes(const Codes&) = delete;
  Codes& operator=(const Codes&) = delete;
  uint8_t operator()(int64_t r, int64_t c) const { return data_[static_cast<size_t>(r * view.ld + c)]; }
  [[nodiscard]] const std::vector<uint8_t>& bytes() const { return data_; }

 private:
  std::vector<uint8_t> data_;

 public:
  Tensor view;
};

}  // namespace pesc
