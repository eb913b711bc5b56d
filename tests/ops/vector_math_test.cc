// The vector functions against double precision, over their ranges and beyond.
#include "ops/core/vector_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace pesc {
namespace {

// The largest error of f against `exact` over [low, high], relative to |exact| + floor.
template <class F, class G>
double worst_error(F f, G exact, double low, double high, double floor) {
  constexpr int kPoints = 200003;
  std::vector<float> x(kPoints);
  std::vector<float> y(kPoints);
  for (int i = 0; i < kPoints; ++i)
    x[static_cast<size_t>(i)] = static_cast<float>(low + (high - low) * i / (kPoints - 1));
#pragma omp simd
  for (size_t i = 0; i < static_cast<size_t>(kPoints); ++i) y[i] = f(x[i]);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = exact(static_cast<double>(x[i]));
    const double error = std::abs(y[i] - want) / (std::abs(want) + floor);
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

double cdf(double x) {
  return 0.5 * std::erfc(-x / std::sqrt(2.0));
}

TEST(VectorMath, ExponentialIsWithinTwoUlp) {
  const auto exact = [](double x) { return std::exp(x); };
  const double ulp = std::exp2(-23);
  EXPECT_LT(worst_error([](float v) { return fast_exp(v); }, exact, -87, 88.72, 0), 1.5 * ulp);
  EXPECT_LT(worst_error([](float v) { return fast_exp(v); }, exact, -1, 1, 0), 1.5 * ulp);
  EXPECT_LT(worst_error([](float v) { return fast_exp(v); }, exact, -105, -86, 1e-38),
            2 * ulp);  // subnormal: absolute
  EXPECT_LT(worst_error([](float v) { return fast_exp(v); }, exact, -1e-3, 1e-3, 0), ulp);
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(fast_exp(0), 1.0F);
  EXPECT_EQ(fast_exp(-inf), 0.0F);
  EXPECT_EQ(fast_exp(-1000), 0.0F);
  EXPECT_EQ(fast_exp(inf), inf);
  EXPECT_EQ(fast_exp(89), inf);
  EXPECT_EQ(fast_exp(1e30F), inf);
  EXPECT_TRUE(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_GT(fast_exp(-103), 0.0F);
}

TEST(VectorMath, GeluIsExactToAMillionth) {
  const auto exact = [](double x) { return x * cdf(x); };
  EXPECT_LT(worst_error([](float v) { return gelu(v); }, exact, -13, 30, 0), 1e-6);
  EXPECT_LT(worst_error([](float v) { return gelu(v); }, exact, -1, 1, 0), 1e-6);
  EXPECT_LT(worst_error([](float v) { return gelu(v); }, exact, -1e4, 1e4, 1e-37), 1e-6);
  EXPECT_EQ(gelu(0), 0.0F);
  EXPECT_EQ(gelu(1e30F), 1e30F);
  EXPECT_TRUE(std::isnan(gelu(std::numeric_limits<float>::quiet_NaN())));
}

TEST(VectorMath, GeluGradientIsExactToTwoMillionths) {
  const auto exact = [](double x) {
    return cdf(x) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0));
  };
  EXPECT_LT(worst_error([](float v) { return gelu_grad(v); }, exact, -13, 30, 0.1), 1e-6);
  EXPECT_LT(worst_error([](float v) { return gelu_grad(v); }, exact, -12, -2, 0),
            2e-6);  // relative in the tail
  EXPECT_LT(worst_error([](float v) { return gelu_grad(v); }, exact, -1e4, 1e4, 0.1), 1e-6);
  EXPECT_EQ(gelu_grad(0), 0.5F);
  EXPECT_TRUE(std::isnan(gelu_grad(std::numeric_limits<float>::quiet_NaN())));
}

TEST(VectorMath, SiluAndSigmoidAreExactToAMillionth) {
  EXPECT_LT(worst_error([](float v) { return silu(v); }, [](double x) { return x / (1 + std::exp(-x)); }, -80,
                        80, 0),
            5e-7);
  EXPECT_LT(worst_error([](float v) { return sigmoid(v); }, [](double x) { return 1 / (1 + std::exp(-x)); },
                        -80, 80, 0),
            5e-7);
  EXPECT_EQ(silu(-1000), 0.0F);
  EXPECT_EQ(silu(1000), 1000.0F);
}

}  // namespace
}  // namespace pesc
