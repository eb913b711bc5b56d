// RoPE against the multiplication of complex numbers; the backward is its inverse and its transpose.
#include "ops/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <complex>

#include "tests/ops/reference.h"

namespace pesc {
namespace {

struct Tables {
  std::vector<double> inv_freq;
  HostMatrix cos, sin;

  Tables(int64_t positions, int64_t half, int threads) : cos(positions, half, 1), sin(positions, half) {
    for (int64_t i = 0; i < half; ++i)
      inv_freq.push_back(std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half)));
    Stream stream(Device{.threads = threads});
    rope_table(stream, inv_freq, cos.view, sin.view);
  }
};

TEST(Rope, TheTableHasCosineAndSineOfEveryAngle) {
  for (const int threads : {1, 2}) {
    const Tables t(3000, 33, threads);
    for (int64_t p = 0; p < 3000; ++p) {
      for (int64_t i = 0; i < 33; ++i) {
        const double angle = static_cast<double>(p) * t.inv_freq[static_cast<size_t>(i)];
        ASSERT_NEAR(t.cos(p, i), std::cos(angle), 1e-7);
        ASSERT_NEAR(t.sin(p, i), std::sin(angle), 1e-7);
      }
    }
    EXPECT_TRUE(t.cos.gaps_untouched());
  }
}

// As a product of complex numbers, in float64 from the frequencies on.
Matrix64 rotated(const Matrix64& x, int64_t half, const std::vector<int32_t>& positions,
                 const std::vector<double>& inv_freq) {
  Matrix64 out(x.rows, x.cols);
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t head = 0; head < x.cols; head += 2 * half) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = positions[static_cast<size_t>(r)] * inv_freq[static_cast<size_t>(i)];
        const auto turned =
            std::complex<double>(x(r, head + i), x(r, head + i + half)) * std::polar(1.0, angle);
        out(r, head + i) = turned.real();
        out(r, head + i + half) = turned.imag();
      }
    }
  }
  return out;
}

TEST(Rope, RotatesComplexNumbers) {
  for (const int threads : {1, 2}) {
    for (const int64_t half : {1, 3, 16, 32, 65}) {
      for (const int64_t heads : {1, 5}) {
        const int64_t tokens = 129;
        const Tables t(200, half, 1);
        std::vector<int32_t> positions = random_ints(tokens, 0, 199, 4);
        const HostMatrix x = HostMatrix::normal(tokens, heads * 2 * half, 1, 3);
        HostMatrix y = x;
        Stream stream(Device{.threads = threads});
        const Tensor p = tensor_of(positions.data(), 1, tokens);
        rope(stream, y.view, p, t.cos.view, t.sin.view, RopeDirection::kForward);
        const Matrix64 want = rotated(Matrix64(x), half, positions, t.inv_freq);
        EXPECT_LT(relative_error(y, want), 1e-6);
        EXPECT_TRUE(y.gaps_untouched());
        // The inverse gives x back; the transpose keeps products: <rotate x, z> = <x, rotate^T z>.
        HostMatrix z = HostMatrix::normal(tokens, x.view.cols, 2);
        const double before = dot(y.values(), z.values());
        rope(stream, z.view, p, t.cos.view, t.sin.view, RopeDirection::kBackward);
        EXPECT_NEAR(dot(x.values(), z.values()), before, 1e-3);
        rope(stream, y.view, p, t.cos.view, t.sin.view, RopeDirection::kBackward);
        EXPECT_LT(relative_error(y.values(), x.values()), 1e-6);
      }
    }
  }
}

TEST(Rope, BackwardIsTheDerivative) {
  constexpr int64_t kTokens = 5;
  for (const int64_t half : {1, 3, 8}) {
    for (const int64_t heads : {1, 2}) {
      const Tables t(100, half, 1);
      std::vector<int32_t> positions = {0, 1, 7, 42, 99};
      HostMatrix x = HostMatrix::normal(kTokens, heads * 2 * half, 1, 2);
      const HostMatrix dy = HostMatrix::normal(kTokens, x.view.cols, 2);
      HostMatrix dx = HostMatrix::normal(kTokens, x.view.cols, 2, 2);
      Stream stream(Device{});
      const Tensor p = tensor_of(positions.data(), 1, kTokens);
      rope(stream, dx.view, p, t.cos.view, t.sin.view, RopeDirection::kBackward);
      const auto loss = [&](const Matrix64& a) {
        return dot(rotated(a, half, positions, t.inv_freq).data, dy.values());
      };
      EXPECT_LT(relative_error(dx, finite_differences(Matrix64(x), loss)), 1e-5);
      EXPECT_TRUE(dx.gaps_untouched());
      const auto run = [&] {
        HostMatrix y = x;
        rope(stream, y.view, p, t.cos.view, t.sin.view, RopeDirection::kForward);
        return dot(y.values(), dy.values());
      };
      EXPECT_LT(relative_error(dx, finite_differences_f32(x, run)), 1e-2);
    }
  }
}

TEST(Rope, ChecksPositionsAndShapes) {
  const Tables t(10, 4, 1);
  HostMatrix x(2, 16);
  Stream stream(Device{});
  std::vector<int32_t> positions = {0, 10};
  const Tensor p = tensor_of(positions.data(), 1, 2);
  EXPECT_THROW(rope(stream, x.view, p, t.cos.view, t.sin.view, RopeDirection::kForward), InternalError);
  positions[1] = -1;
  EXPECT_THROW(rope(stream, x.view, p, t.cos.view, t.sin.view, RopeDirection::kForward), InternalError);
  positions[1] = 9;
  rope(stream, x.view, p, t.cos.view, t.sin.view, RopeDirection::kForward);
  EXPECT_THROW(rope(stream, x.view.col_range(0, 12), p, t.cos.view, t.sin.view, RopeDirection::kForward),
               InternalError);
  rope(stream, x.view.row_range(0, 0), tensor_of(positions.data(), 1, 0), t.cos.view, t.sin.view,
       RopeDirection::kForward);
}

}  // namespace
}  // namespace pesc
