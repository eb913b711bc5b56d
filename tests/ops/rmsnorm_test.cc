// RMSNorm against float64, forward and backward, with the fused residual, strides and both threads.
#include "ops/rmsnorm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/ops/reference.h"

namespace pesc {
namespace {

constexpr float kEps = 1e-5F;

struct Shape {
  int64_t tokens, hidden, gap;
  int threads;
};
const std::vector<Shape> kShapes = {{0, 8, 0, 2},  {1, 1, 0, 1},     {3, 17, 2, 1},    {65, 63, 0, 2},
                                    {7, 64, 5, 1}, {129, 256, 0, 2}, {40, 1500, 3, 2}, {5, 4097, 0, 1}};

Matrix64 reference(const Matrix64& x, const Matrix64& w) {
  Matrix64 y(x.rows, x.cols);
  for (int64_t t = 0; t < x.rows; ++t) {
    double square = 0;
    for (int64_t i = 0; i < x.cols; ++i) square += x(t, i) * x(t, i);
    const double r = 1 / std::sqrt(square / static_cast<double>(x.cols) + static_cast<double>(kEps));
    for (int64_t i = 0; i < x.cols; ++i) y(t, i) = x(t, i) * r * w(0, i);
  }
  return y;
}

TEST(RmsNorm, ForwardMatchesTheReference) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(str_cat(s.tokens, "x", s.hidden));
    Stream stream(Device{.threads = s.threads});
    const HostMatrix x = HostMatrix::normal(s.tokens, s.hidden, 1, s.gap, 3);
    const HostMatrix w = HostMatrix::normal(1, s.hidden, 2);
    HostMatrix y(s.tokens, s.hidden, 2 * s.gap);
    HostMatrix rstd(1, s.tokens);
    rmsnorm_forward(stream, {.x = x.view,
                             .residual = {},
                             .x_out = {},
                             .weight = w.view,
                             .eps = kEps,
                             .y = y.view,
                             .rstd = rstd.view});
    EXPECT_LT(relative_error(y, reference(Matrix64(x), Matrix64(w))), 1e-5);
    EXPECT_TRUE(y.gaps_untouched());
    HostMatrix again(s.tokens, s.hidden, 1);
    rmsnorm_apply(stream, x.view, w.view, rstd.view, again.view);
    EXPECT_EQ(again.values(), y.values());
  }
}

TEST(RmsNorm, AFusedResidualEqualsTheSumDoneBefore) {
  for (const bool alias : {false, true}) {
    for (const Shape& s : kShapes) {
      if (s.tokens == 0) continue;
      Stream stream(Device{.threads = s.threads});
      HostMatrix x = HostMatrix::normal(s.tokens, s.hidden, 1, s.gap);
      const HostMatrix residual = HostMatrix::normal(s.tokens, s.hidden, 2, 1);
      const HostMatrix w = HostMatrix::normal(1, s.hidden, 3);
      Matrix64 sum(x);
      for (int64_t t = 0; t < s.tokens; ++t)
        for (int64_t i = 0; i < s.hidden; ++i) sum(t, i) += residual(t, i);
      HostMatrix x_out(s.tokens, s.hidden);
      HostMatrix y(s.tokens, s.hidden);
      HostMatrix rstd(1, s.tokens);
      HostMatrix& written = alias ? x : x_out;
      rmsnorm_forward(stream, {.x = x.view,
                               .residual = residual.view,
                               .x_out = written.view,
                               .weight = w.view,
                               .eps = kEps,
                               .y = y.view,
                               .rstd = rstd.view});
      EXPECT_LT(relative_error(written, sum), 1e-6);
      EXPECT_LT(relative_error(y, reference(sum, Matrix64(w))), 1e-5);
    }
  }
}

struct Backward {
  HostMatrix dx, dw;
};

Backward run_backward(const Shape& s, const HostMatrix& x, const HostMatrix& w, const HostMatrix& dy,
                      float before) {
  Stream stream(Device{.threads = s.threads});
  HostMatrix y(s.tokens, s.hidden);
  HostMatrix rstd(1, s.tokens);
  rmsnorm_forward(stream, {.x = x.view,
                           .residual = {},
                           .x_out = {},
                           .weight = w.view,
                           .eps = kEps,
                           .y = y.view,
                           .rstd = rstd.view});
  Backward out{HostMatrix(s.tokens, s.hidden, s.gap, before), HostMatrix(1, s.hidden, 0, before)};
  rmsnorm_backward(stream, {.dy = dy.view,
                            .x = x.view,
                            .weight = w.view,
                            .rstd = rstd.view,
                            .dx = out.dx.view,
                            .dweight = out.dw.view});
  return out;
}

TEST(RmsNorm, BackwardAddsTheGradient) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(str_cat(s.tokens, "x", s.hidden));
    const HostMatrix x = HostMatrix::normal(s.tokens, s.hidden, 1, s.gap);
    const HostMatrix w = HostMatrix::normal(1, s.hidden, 2);
    const HostMatrix dy = HostMatrix::normal(s.tokens, s.hidden, 3);
    const Backward got = run_backward(s, x, w, dy, 0.5F);
    Matrix64 dx(s.tokens, s.hidden, 0.5);
    Matrix64 dw(1, s.hidden, 0.5);
    for (int64_t t = 0; t < s.tokens; ++t) {
      double square = static_cast<double>(kEps);
      double product = 0;
      for (int64_t i = 0; i < s.hidden; ++i) {
        square += static_cast<double>(x(t, i)) * x(t, i) / static_cast<double>(s.hidden);
        product += static_cast<double>(dy(t, i)) * w(0, i) * x(t, i) / static_cast<double>(s.hidden);
      }
      const double r = 1 / std::sqrt(square);
      for (int64_t i = 0; i < s.hidden; ++i) {
        dx(t, i) += r * dy(t, i) * w(0, i) - r * r * r * product * x(t, i);
        dw(0, i) += r * dy(t, i) * x(t, i);
      }
    }
    EXPECT_LT(relative_error(got.dx, dx), 1e-5);
    EXPECT_LT(relative_error(got.dw, dw), 1e-5);
    EXPECT_TRUE(got.dx.gaps_untouched());
  }
}

TEST(RmsNorm, BackwardIsTheDerivative) {
  const Shape s{3, 9, 0, 1};
  HostMatrix x = HostMatrix::normal(s.tokens, s.hidden, 1);
  HostMatrix w = HostMatrix::normal(1, s.hidden, 2);
  const HostMatrix dy = HostMatrix::normal(s.tokens, s.hidden, 3);
  const Backward got = run_backward(s, x, w, dy, 0);
  const Matrix64 w64(w);
  const Matrix64 x64(x);
  const auto loss = [&](const Matrix64& a, const Matrix64& b) {
    return dot(reference(a, b).data, dy.values());
  };
  EXPECT_LT(relative_error(got.dx, finite_differences(x64, [&](const auto& a) { return loss(a, w64); })),
            1e-4);
  EXPECT_LT(relative_error(got.dw, finite_differences(w64, [&](const auto& b) { return loss(x64, b); })),
            1e-4);
  Stream stream(Device{});
  HostMatrix y(s.tokens, s.hidden);
  HostMatrix rstd(1, s.tokens);
  const auto run = [&] {
    rmsnorm_forward(stream, {.x = x.view,
                             .residual = {},
                             .x_out = {},
                             .weight = w.view,
                             .eps = kEps,
                             .y = y.view,
                             .rstd = rstd.view});
    return dot(y.values(), dy.values());
  };
  EXPECT_LT(relative_error(got.dx, finite_differences_f32(x, run)), 1e-2);
  EXPECT_LT(relative_error(got.dw, finite_differences_f32(w, run)), 1e-2);
}

TEST(RmsNorm, FrozenWeightHasNoGradient) {
  Stream stream(Device{});
  const HostMatrix x = HostMatrix::normal(4, 8, 1);
  const HostMatrix w = HostMatrix::normal(1, 8, 2);
  HostMatrix rstd(1, 4, 0, 1.0F);
  HostMatrix dx(4, 8);
  rmsnorm_backward(
      stream, {.dy = x.view, .x = x.view, .weight = w.view, .rstd = rstd.view, .dx = dx.view, .dweight = {}});
  EXPECT_NE(dx(0, 0), 0.0F);
}

// The dropped copy, and the terms of the gradient: the same as the operations one by one.
TEST(RmsNorm, DroppedCopyAndTermsOfTheGradient) {
  for (const float rate : {0.0F, 0.4F}) {
    constexpr int64_t kTokens = 11;
    constexpr int64_t kHidden = 37;
    constexpr int64_t kExperts = 4;
    Stream stream(Device{.threads = 2});
    std::vector<int64_t> samples(kTokens, 7);
    std::vector<int32_t> positions;
    for (int32_t t = 0; t < kTokens; ++t) positions.push_back(3 * t);
    Dropout mask;
    mask.rate = rate;
    mask.seed = 4;
    mask.samples = tensor_of(samples.data(), 1, kTokens);
    mask.positions = tensor_of(positions.data(), 1, kTokens);
    const HostMatrix x = HostMatrix::normal(kTokens, kHidden, 1, 1), w = HostMatrix::normal(1, kHidden, 2);
    HostMatrix y(kTokens, kHidden), rstd(1, kTokens), dropped(kTokens, kHidden, 2), again = dropped, want = y;
    rmsnorm_forward(stream, {.x = x.view,
                             .residual = {},
                             .x_out = {},
                             .weight = w.view,
                             .eps = kEps,
                             .y = y.view,
                             .rstd = rstd.view,
                             .dropped = {mask, dropped.view}});
    rmsnorm_apply(stream, x.view, w.view, rstd.view, {}, {mask, again.view});
    dropout(stream, mask, y.view, want.view);
    EXPECT_EQ(dropped.values(), want.values());
    EXPECT_EQ(again.values(), want.values());
    EXPECT_TRUE(dropped.gaps_untouched());

    const HostMatrix dy = HostMatrix::normal(kTokens, kHidden, 3),
                     term = HostMatrix::normal(kTokens, kHidden, 5);
    const HostMatrix router = HostMatrix::normal(kExperts, kHidden, 6);
    const HostMatrix dlogits =
        HostMatrix::normal(kTokens - 2, kExperts, 7);  // the last two tokens are padding
    HostMatrix whole = dy, used_up = dy, dx(kTokens, kHidden, 0, 0.5F), got = dx;
    dropout_add(stream, mask, term.view, whole.view);
    add_low_rank_term(stream, {dlogits.view, router.view}, whole.view.row_range(0, kTokens - 2));
    rmsnorm_backward(stream, {whole.view, x.view, w.view, rstd.view, dx.view, {}});
    rmsnorm_backward(stream, {used_up.view,
                              x.view,
                              w.view,
                              rstd.view,
                              got.view,
                              {},
                              {mask, term.view},
                              {dlogits.view, router.view}});
    EXPECT_EQ(got.values(), dx.values());
    HostMatrix without(kTokens, kHidden, 0, 0.5F);
    rmsnorm_backward(stream, {dy.view, x.view, w.view, rstd.view, without.view, {}});
    EXPECT_GT(relative_error(got, Matrix64(without)), 1e-2);
    HostMatrix dw(1, kHidden);
    EXPECT_THROW(
        rmsnorm_backward(stream,
                         {used_up.view, x.view, w.view, rstd.view, got.view, dw.view, {mask, term.view}, {}}),
        InternalError);
  }
}

}  // namespace
}  // namespace pesc
