// RMSNorm of each head against float64 and finite differences: strides, both threads, dx in the place of dy.
#include "ops/head_norm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "ops/rmsnorm.h"
#include "tests/ops/reference.h"

namespace pesc {
namespace {

constexpr float kEps = 1e-6F;

struct Shape {
  int64_t tokens, heads, dim, gap;
  int threads;
};
const std::vector<Shape> kShapes = {{0, 3, 8, 0, 2},   {1, 1, 1, 0, 1},    {3, 5, 17, 2, 1},
                                    {65, 2, 63, 0, 2}, {129, 8, 64, 4, 2}, {40, 1, 128, 3, 2},
                                    {5, 3, 1030, 0, 1}};

Matrix64 reference(const Matrix64& x, const Matrix64& w) {
  Matrix64 y(x.rows, x.cols);
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t head = 0; head < x.cols; head += w.cols) {
      double square = 0;
      for (int64_t i = 0; i < w.cols; ++i) square += x(t, head + i) * x(t, head + i);
      const double r = 1 / std::sqrt(square / static_cast<double>(w.cols) + static_cast<double>(kEps));
      for (int64_t i = 0; i < w.cols; ++i) y(t, head + i) = x(t, head + i) * r * w(0, i);
    }
  }
  return y;
}

// Columns of different size, so that a wrong head or column shows.
HostMatrix input(const Shape& s, unsigned seed) {
  HostMatrix x = HostMatrix::normal(s.tokens, s.heads * s.dim, seed, s.gap);
  for (int64_t t = 0; t < s.tokens; ++t)
    for (int64_t c = 0; c < s.heads * s.dim; ++c) x(t, c) *= static_cast<float>(1 + c % 7 + c / s.dim);
  return x;
}

TEST(HeadNorm, ForwardMatchesTheReference) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(str_cat(s.tokens, " tokens, ", s.heads, " heads of ", s.dim));
    Stream stream(Device{.threads = s.threads});
    HostMatrix x = input(s, 1);
    const HostMatrix w = HostMatrix::normal(1, s.dim, 2);
    HostMatrix y(s.tokens, s.heads * s.dim, 2 * s.gap), rstd(s.tokens, s.heads, s.gap);
    head_norm_forward(stream, {.x = x.view, .weight = w.view, .eps = kEps, .y = y.view, .rstd = rstd.view});
    EXPECT_LT(relative_error(y, reference(Matrix64(x), Matrix64(w))), 1e-6);
    EXPECT_TRUE(y.gaps_untouched());
    EXPECT_TRUE(rstd.gaps_untouched());
    // In place.
    head_norm_forward(stream, {.x = x.view, .weight = w.view, .eps = kEps, .y = x.view, .rstd = rstd.view});
    EXPECT_EQ(x.values(), y.values());
  }
}

// One head is a row of RMSNorm.
TEST(HeadNorm, OfOneHeadIsRmsNorm) {
  Stream stream(Device{.threads = 2});
  const HostMatrix x = HostMatrix::normal(33, 48, 1), w = HostMatrix::normal(1, 48, 2);
  HostMatrix y(33, 48), want(33, 48), rstd(33, 1), want_rstd(1, 33);
  head_norm_forward(stream, {.x = x.view, .weight = w.view, .eps = kEps, .y = y.view, .rstd = rstd.view});
  rmsnorm_forward(stream, {.x = x.view,
                           .residual = {},
                           .x_out = {},
                           .weight = w.view,
                           .eps = kEps,
                           .y = want.view,
                           .rstd = want_rstd.view});
  EXPECT_LT(relative_error(y.values(), want.values()), 1e-6);
  EXPECT_LT(relative_error(rstd.values(), want_rstd.values()), 1e-6);
}

struct Gradients {
  HostMatrix dx, dw;
};

Gradients run_backward(const Shape& s, const HostMatrix& x, const HostMatrix& w, const HostMatrix& dy) {
  Stream stream(Device{.threads = s.threads});
  HostMatrix y(s.tokens, s.heads * s.dim), rstd(s.tokens, s.heads, 1);
  head_norm_forward(stream, {.x = x.view, .weight = w.view, .eps = kEps, .y = y.view, .rstd = rstd.view});
  Gradients out{HostMatrix(s.tokens, s.heads * s.dim, s.gap, 0.5F), HostMatrix(1, s.dim, 0, 0.5F)};
  head_norm_backward(stream, {.dy = dy.view,
                              .x = x.view,
                              .weight = w.view,
                              .rstd = rstd.view,
                              .dx = out.dx.view,
                              .dweight = out.dw.view});
  // Once more in the place of dy: the same bits, of the weight too.
  HostMatrix in_place = dy, dw(1, s.dim, 0, 0.5F);
  head_norm_backward(stream, {.dy = in_place.view,
                              .x = x.view,
                              .weight = w.view,
                              .rstd = rstd.view,
                              .dx = in_place.view,
                              .dweight = dw.view});
  EXPECT_EQ(in_place.values(), out.dx.values());
  EXPECT_EQ(dw.values(), out.dw.values());
  EXPECT_TRUE(in_place.gaps_untouched());
  return out;
}

TEST(HeadNorm, BackwardWritesDxAndAddsTheGradientOfTheWeight) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(str_cat(s.tokens, " tokens, ", s.heads, " heads of ", s.dim));
    const HostMatrix x = input(s, 1), w = HostMatrix::normal(1, s.dim, 2), dy = input(s, 3);
    const Gradients got = run_backward(s, x, w, dy);
    Matrix64 dx(s.tokens, s.heads * s.dim), dw(1, s.dim, 0.5);
    double largest_term = 0;  // of the two whose difference dx is: next to nothing is left of a head of one
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t head = 0; head < s.heads * s.dim; head += s.dim) {
        double square = static_cast<double>(kEps);
        double product = 0;
        for (int64_t i = 0; i < s.dim; ++i) {
          const double a = x(t, head + i);
          square += a * a / static_cast<double>(s.dim);
          product += static_cast<double>(dy(t, head + i)) * w(0, i) * a / static_cast<double>(s.dim);
        }
        const double r = 1 / std::sqrt(square);
        for (int64_t i = 0; i < s.dim; ++i) {
          largest_term = std::max(largest_term, std::abs(r * dy(t, head + i) * w(0, i)));
          dx(t, head + i) = r * dy(t, head + i) * w(0, i) - r * r * r * product * x(t, head + i);
          dw(0, i) += r * dy(t, head + i) * x(t, head + i);
        }
      }
    }
    double worst = 0;
    for (int64_t t = 0; t < s.tokens; ++t)
      for (int64_t c = 0; c < s.heads * s.dim; ++c)
        worst = std::max(worst, std::abs(static_cast<double>(got.dx(t, c)) - dx(t, c)));
    EXPECT_LE(worst, 1e-6 * largest_term);
    EXPECT_LT(relative_error(got.dw, dw), 1e-5);
    EXPECT_TRUE(got.dx.gaps_untouched());
  }
}

TEST(HeadNorm, BackwardIsTheDerivative) {
  const Shape s{3, 2, 6, 0, 1};
  HostMatrix x = HostMatrix::normal(s.tokens, s.heads * s.dim, 1);
  HostMatrix w = HostMatrix::normal(1, s.dim, 2);
  const HostMatrix dy = HostMatrix::normal(s.tokens, s.heads * s.dim, 3);
  Gradients got = run_backward(s, x, w, dy);
  for (int64_t i = 0; i < s.dim; ++i) got.dw(0, i) -= 0.5F;
  const Matrix64 x64(x), w64(w);
  const auto loss = [&](const Matrix64& a, const Matrix64& b) {
    return dot(reference(a, b).data, dy.values());
  };
  EXPECT_LT(relative_error(got.dx, finite_differences(x64, [&](const auto& a) { return loss(a, w64); })),
            1e-4);
  EXPECT_LT(relative_error(got.dw, finite_differences(w64, [&](const auto& b) { return loss(x64, b); })),
            1e-4);
  // Of the operation itself, in float32.
  Stream stream(Device{});
  HostMatrix y(s.tokens, s.heads * s.dim), rstd(s.tokens, s.heads);
  const auto run = [&] {
    head_norm_forward(stream, {.x = x.view, .weight = w.view, .eps = kEps, .y = y.view, .rstd = rstd.view});
    return dot(y.values(), dy.values());
  };
  EXPECT_LT(relative_error(got.dx, finite_differences_f32(x, run)), 1e-2);
  EXPECT_LT(relative_error(got.dw, finite_differences_f32(w, run)), 1e-2);
}

// Heads are column ranges of q, k and v side by side: k is normed there, and q and v stay as they are.
TEST(HeadNorm, OfColumnsInsideOfAMatrixLeavesTheOthersAlone) {
  constexpr int64_t kDim = 4;
  Stream stream(Device{});
  HostMatrix qkv = HostMatrix::normal(6, 7 * kDim, 1);
  const HostMatrix before = qkv, w = HostMatrix::normal(1, kDim, 2);
  HostMatrix rstd(6, 5);
  const Tensor k = qkv.view.col_range(3 * kDim, 5 * kDim);
  head_norm_forward(stream,
                    {.x = k, .weight = w.view, .eps = kEps, .y = k, .rstd = rstd.view.col_range(3, 5)});
  const Matrix64 want = reference(Matrix64(before), Matrix64(w));
  for (int64_t t = 0; t < 6; ++t) {
    for (int64_t c = 0; c < 7 * kDim; ++c) {
      const bool normed = c >= 3 * kDim && c < 5 * kDim;
      EXPECT_NEAR(qkv(t, c), normed ? want(t, c) : static_cast<double>(before(t, c)), 1e-5);
    }
    for (int64_t head = 0; head < 5; ++head) EXPECT_EQ(rstd(t, head) > 0, head >= 3);
  }
}

TEST(HeadNorm, FrozenWeightHasNoGradient) {
  Stream stream(Device{});
  const HostMatrix x = HostMatrix::normal(4, 16, 1), w = HostMatrix::normal(1, 8, 2);
  HostMatrix rstd(4, 2, 0, 1.0F), dx(4, 16);
  head_norm_backward(
      stream, {.dy = x.view, .x = x.view, .weight = w.view, .rstd = rstd.view, .dx = dx.view, .dweight = {}});
  EXPECT_NE(dx(0, 0), 0.0F);
}

TEST(HeadNorm, RefusesShapesThatDoNotMatch) {
  Stream stream(Device{});
  HostMatrix x(4, 16), y(4, 16), w(1, 8), rstd(4, 2), other(4, 3), fewer(3, 2), odd(1, 7), dw(1, 16);
  const auto forward = [&](const HostMatrix& weight, const HostMatrix& r, const Tensor& to) {
    head_norm_forward(stream, {.x = x.view, .weight = weight.view, .eps = kEps, .y = to, .rstd = r.view});
  };
  EXPECT_NO_THROW(forward(w, rstd, y.view));
  EXPECT_THROW(forward(w, other, y.view), InternalError);
  EXPECT_THROW(forward(w, fewer, y.view), InternalError);
  EXPECT_THROW(forward(odd, rstd, y.view), InternalError);
  EXPECT_THROW(forward(w, rstd, y.view.col_range(0, 8)), InternalError);
  EXPECT_THROW(
      head_norm_backward(
          stream,
          {.dy = y.view, .x = x.view, .weight = w.view, .rstd = rstd.view, .dx = y.view, .dweight = dw.view}),
      InternalError);
}

}  // namespace
}  // namespace pesc
