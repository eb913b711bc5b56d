// Rotary position embedding on the CPU: with c, s = cos, sin of the angle of column i at a token's position,
//   (x_i, x_(i + D/2)) -> (x_i c - x_(i + D/2) s, x_(i + D/2) c + x_i s)
// Tokens are cut over threads. T tokens, D head_dim.
#include "ops/rope.h"

#include <cmath>

#include "ops/core/threads.h"
#include "ops/cuda_ops.h"

namespace pesc {
namespace {

// Rotates one head; `sign` is -1 for the backward.
void rotate(float* x, const float* cos, const float* sin, float sign, int64_t half) {
  float* first = x;
  float* second = x + half;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float a = first[i];
    const float b = second[i];
    const float s = sin[i] * sign;
    first[i] = a * cos[i] - b * s;
    second[i] = b * cos[i] + a * s;
  }
}

void check_tables(const Tensor& cos, const Tensor& sin) {
  PESC_CHECK(
      cos.dtype == DType::kF32 && sin.dtype == DType::kF32 && cos.rows == sin.rows && cos.cols == sin.cols,
      "cos ", cos.rows, "x", cos.cols, ", sin ", sin.rows, "x", sin.cols);
}

}  // namespace

void rope_table(Stream& stream, std::span<const double> inv_freq, const Tensor& cos, const Tensor& sin) {
  if (stream.on_cuda()) return cuda_ops().rope_table(stream, inv_freq, cos, sin);
  check_tables(cos, sin);
  const auto half = static_cast<int64_t>(inv_freq.size());
  PESC_CHECK(half == cos.cols, "tables of ", cos.cols, " columns for ", half, " frequencies");
  parallel_for(stream, cos.rows, row_grain(64 * half), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(p) * inv_freq[static_cast<size_t>(i)];
        cos.f32()[p * cos.ld + i] = static_cast<float>(std::cos(angle));
        sin.f32()[p * sin.ld + i] = static_cast<float>(std::sin(angle));
      }
    }
  });
}

void rope(Stream& stream, const Tensor& x, const Tensor& positions, const Tensor& cos, const Tensor& sin,
          RopeDirection direction) {
  if (stream.on_cuda()) return cuda_ops().rope(stream, x, positions, cos, sin, direction);
  check_tables(cos, sin);
  const int64_t half = cos.cols;
  PESC_CHECK(x.dtype == DType::kF32 && half > 0 && x.cols % (2 * half) == 0, "x of ", x.cols, " columns for ",
             half, " frequencies");
  PESC_CHECK(positions.dtype == DType::kI32 && positions.rows == 1 && positions.cols == x.rows,
             "positions of ", positions.cols, " for ", x.rows, " tokens");
  for (int64_t t = 0; t < x.rows; ++t) {
    const int32_t p = positions.i32()[t];
    PESC_CHECK(0 <= p && p < cos.rows, "position ", p, " of token ", t, " in tables of ", cos.rows);
  }
  const float sign = direction == RopeDirection::kForward ? 1.0F : -1.0F;
  parallel_for(stream, x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t p = positions.i32()[t];
      float* row = x.f32() + t * x.ld;
      for (int64_t column = 0; column < x.cols; column += 2 * half)
        rotate(row + column, cos.f32() + p * cos.ld, sin.f32() + p * sin.ld, sign, half);
    }
  });
}

}  // namespace pesc
