// AdamW against the algorithm of torch.optim.AdamW written in double, over several steps.
#include "ops/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "ops/core/bf16.h"

namespace pesc {
namespace {

struct State {
  std::vector<float> param, grad, avg, avg_sq;

  explicit State(size_t n) : param(n), grad(n), avg(n), avg_sq(n) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& v : param) v = normal(random);
    for (float& v : grad) v = normal(random);
  }
  AdamW args() {
    const auto n = static_cast<int64_t>(param.size());
    AdamW a;
    a.param = tensor_of(param.data(), 1, n);
    a.grad = tensor_of(grad.data(), 1, n);
    a.exp_avg = tensor_of(avg.data(), 1, n);
    a.exp_avg_sq = tensor_of(avg_sq.data(), 1, n);
    return a;
  }
};

struct Hyper {
  double lr, beta1, beta2, eps, weight_decay;
  float grad_scale;
};

TEST(AdamW, MatchesTheReferenceOverSteps) {
  for (const Hyper& h : {Hyper{1e-2, 0.9, 0.999, 1e-8, 0, 1}, Hyper{3e-3, 0.8, 0.95, 1e-3, 0.1, 0.25F},
                         Hyper{0.5, 0, 0.5, 1e-8, 0.01, 1}}) {
    for (size_t n : {size_t{1}, size_t{37}, size_t{70001}}) {
      State s(n);
      std::vector<double> p(s.param.begin(), s.param.end());
      std::vector<double> m(n);
      std::vector<double> v(n);
      Stream stream(Device{.threads = 2});
      for (int64_t step = 1; step <= 7; ++step) {
        for (size_t i = 0; i < n; ++i)
          s.grad[i] = std::sin(0.1F * static_cast<float>(i) + static_cast<float>(step)) + s.param[i];
        for (size_t i = 0; i < n; ++i) {
          const double g = static_cast<double>(s.grad[i]) * h.grad_scale;
          p[i] *= 1 - h.lr * h.weight_decay;
          m[i] = h.beta1 * m[i] + (1 - h.beta1) * g;
          v[i] = h.beta2 * v[i] + (1 - h.beta2) * g * g;
          const double m_hat = m[i] / (1 - std::pow(h.beta1, step));
          const double v_hat = v[i] / (1 - std::pow(h.beta2, step));
          p[i] -= h.lr * m_hat / (std::sqrt(v_hat) + h.eps);
        }
        AdamW a = s.args();
        a.lr = h.lr;
        a.beta1 = h.beta1;
        a.beta2 = h.beta2;
        a.eps = h.eps;
        a.weight_decay = h.weight_decay;
        a.grad_scale = h.grad_scale;
        a.step = step;
        adamw(stream, {&a, 1});
      }
      for (size_t i = 0; i < n; ++i) {
        ASSERT_NEAR(s.param[i], p[i], 2e-6 * (1 + std::abs(p[i]))) << i << " of " << n;
        ASSERT_NEAR(s.avg[i], m[i], 1e-6);
        ASSERT_NEAR(s.avg_sq[i], v[i], 1e-6 * (1 + v[i]));
      }
    }
  }
}

TEST(AdamW, FirstStepMovesByTheLearningRateAgainstTheGradient) {
  State s(4);
  s.param = {0, 0, 0, 0};
  s.grad = {3, -3, 1e-3F, 0};
  Stream stream(Device{});
  AdamW a = s.args();
  a.lr = 0.1;
  adamw(stream, {&a, 1});
  EXPECT_NEAR(s.param[0], -0.1, 1e-6);
  EXPECT_NEAR(s.param[1], 0.1, 1e-6);
  EXPECT_NEAR(s.param[2], -0.1, 1e-5);
  EXPECT_EQ(s.param[3], 0.0F);
}

TEST(AdamW, TheCopyIsTheParameterRounded) {
  State s(1000);
  std::vector<uint16_t> copy(1000);
  Stream stream(Device{});
  AdamW a = s.args();
  a.lr = 0.1;
  a.compute_weight = {copy.data(), DType::kBF16, 1, 1000, 1000};
  adamw(stream, {&a, 1});
  for (size_t i = 0; i < copy.size(); ++i) ASSERT_EQ(copy[i], f32_to_bf16(s.param[i])) << i;
}

TEST(AdamW, ComputeWeightMayBePartOfAWiderMatrix) {
  State s(120);
  std::vector<uint16_t> wide(12 * 16, 7);
  Stream stream(Device{});
  AdamW a = s.args();
  a.lr = 0.1;
  a.compute_weight = {wide.data() + 4, DType::kBF16, 12, 10, 16};
  adamw(stream, {&a, 1});
  for (size_t r = 0; r < 12; ++r)
    for (size_t c = 0; c < 16; ++c)
      ASSERT_EQ(wide[r * 16 + c], c >= 4 && c < 14 ? f32_to_bf16(s.param[r * 10 + c - 4]) : 7)
          << r << " " << c;
}

TEST(AdamW, ThreadsDoNotMatter) {
  State one(100003);
  State two(100003);
  Stream stream1(Device{.threads = 1});
  Stream stream2(Device{.threads = 2});
  for (int64_t step = 1; step <= 3; ++step) {
    for (auto [state, stream] : {std::pair{&one, &stream1}, {&two, &stream2}}) {
      AdamW a = state->args();
      a.lr = 1e-3;
      a.weight_decay = 0.1;
      a.step = step;
      adamw(*stream, {&a, 1});
    }
  }
  EXPECT_EQ(one.param, two.param);
  EXPECT_EQ(one.avg, two.avg);
  EXPECT_EQ(one.avg_sq, two.avg_sq);
}

TEST(AdamW, NothingToDoAndBadArguments) {
  State none(0);
  Stream stream(Device{});
  EXPECT_NO_THROW(adamw(stream, {}));
  AdamW a = none.args();
  EXPECT_NO_THROW(adamw(stream, {&a, 1}));
  State s(3);
  a = s.args();
  a.step = 0;
  EXPECT_THROW(adamw(stream, {&a, 1}), InternalError);
  a = s.args();
  a.grad = a.grad.col_range(0, 2);
  EXPECT_THROW(adamw(stream, {&a, 1}), InternalError);
}

}  // namespace
}  // namespace pesc
