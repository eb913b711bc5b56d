// General GEMMs against float64 loops: all transposes, odd shapes, strides, alpha and beta, empty
// GEMMs.
#include "ops/gemm.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/ops/reference.h"

namespace pesc {
namespace {

struct Case {
  int64_t m, n, k;
  bool trans_a, trans_b;
  float alpha, beta;
  int64_t gap;
  int threads;
};

Matrix64 reference(const Case& c, const HostMatrix& a, const HostMatrix& b, const HostMatrix& before) {
  Matrix64 out(c.m, c.n);
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < c.k; ++l)
        sum += static_cast<double>(c.trans_a ? a(l, i) : a(i, l)) * (c.trans_b ? b(j, l) : b(l, j));
      out(i, j) = c.alpha * sum + (c.beta == 0 ? 0.0 : static_cast<double>(c.beta) * before(i, j));
    }
  }
  return out;
}

void run(const Case& c) {
  SCOPED_TRACE(str_cat(c.m, "x", c.n, "x", c.k, c.trans_a ? " a^T" : "", c.trans_b ? " b^T" : "", " alpha ",
                       c.alpha, " beta ", c.beta, " gap ", c.gap, " threads ", c.threads));
  const HostMatrix a = HostMatrix::normal(c.trans_a ? c.k : c.m, c.trans_a ? c.m : c.k, 1, c.gap);
  const HostMatrix b = HostMatrix::normal(c.trans_b ? c.n : c.k, c.trans_b ? c.k : c.n, 2, 2 * c.gap);
  HostMatrix out = HostMatrix::normal(c.m, c.n, 3, c.gap);
  const HostMatrix before = out;
  // With beta = 0 what stood there does not matter, were it not a number.
  if (c.beta == 0) out.fill(std::numeric_limits<float>::quiet_NaN());
  Stream stream(Device{.threads = c.threads});
  gemm(stream, {.a = a.view,
                .trans_a = c.trans_a ? Transpose::kYes : Transpose::kNo,
                .b = b.view,
                .trans_b = c.trans_b ? Transpose::kYes : Transpose::kNo,
                .c = out.view,
                .alpha = c.alpha,
                .beta = c.beta});
  EXPECT_LT(relative_error(out, reference(c, a, b, before)), 1e-5);
  EXPECT_TRUE(out.gaps_untouched());
}

TEST(Gemm, AllTransposesAndShapes) {
  for (const int64_t m : {1, 3, 17, 65, 129})
    for (const int64_t n : {1, 8, 63, 130})
      for (const int64_t k : {1, 16, 129})
        for (const bool ta : {false, true})
          for (const bool tb : {false, true})
            run({m, n, k, ta, tb, 0.5F, m % 2 == 0 ? 0.0F : 1.0F, k % 3, 1 + static_cast<int>(n % 2)});
}

TEST(Gemm, AlphaAndBetaScaleTheTerms) {
  for (const float alpha : {0.0F, 1.0F, -2.0F})
    for (const float beta : {0.0F, 1.0F, 0.25F}) run({33, 47, 19, false, true, alpha, beta, 3, 1});
}

TEST(Gemm, LargeOnTwoThreads) {
  run({300, 200, 64, false, true, 1.0F, 0.0F, 0, 2});
  run({64, 515, 200, true, false, 0.5F, 1.0F, 5, 2});
  run({515, 64, 200, false, false, 1.0F, 1.0F, 0, 3});
}

// Tokens times a small weight, and sums over tokens into a small gradient: cut into pieces where OpenBLAS has
// kernels for them.
TEST(Gemm, ManyRowsAndASmallMatrix) {
  for (const bool tb : {false, true}) {
    run({700, 200, 100, false, tb, 0.5F, 0.0F, 3, 2});
    run({700, 200, 100, false, tb, 0.5F, 1.0F, 3, 2});
    run({700, 48, 300, false, tb, 2.0F, 0.25F, 1, 2});
    run({129, 129, 770, false, tb, 1.0F, 0.0F, 2, 1});
    run({70, 2, 3000, false, tb, -1.0F, 1.0F, 0, 1});
    run({30, 50, 700, true, tb, 0.5F, 0.25F, 2, 1});
    run({16, 64, 1025, true, tb, 1.0F, 1.0F, 0, 2});
    run({16, 64, 513, true, tb, 1.0F, 0.0F, 1, 3});
  }
}

TEST(Gemm, AnEmptyGemmScalesCByBeta) {
  for (const bool ta : {false, true}) {
    for (const float beta : {0.0F, 1.0F, 0.5F}) {
      run({5, 7, 0, ta, !ta, 1.0F, beta, 1, 1});
      run({0, 7, 4, ta, !ta, 1.0F, beta, 0, 2});
      run({5, 0, 4, ta, ta, 1.0F, beta, 0, 2});
    }
  }
}

TEST(Gemm, ChecksShapesAndTypes) {
  Stream stream(Device{});
  HostMatrix a(2, 3);
  HostMatrix b(3, 4);
  HostMatrix c(2, 4);
  EXPECT_THROW(gemm(stream, {.a = a.view, .b = a.view, .c = c.view}), InternalError);
  EXPECT_THROW(gemm(stream, {.a = a.view, .b = b.view, .c = a.view}), InternalError);
  Tensor narrow = b.view;
  narrow.ld = 3;
  EXPECT_THROW(gemm(stream, {.a = a.view, .b = narrow, .c = c.view}), InternalError);
  Tensor other = b.view;
  other.dtype = DType::kI32;
  EXPECT_THROW(gemm(stream, {.a = a.view, .b = other, .c = c.view}), InternalError);
}

TEST(Gemm, LinearForwardAndBackward) {
  for (const int threads : {1, 2}) {
    Stream stream(Device{.threads = threads});
    const int64_t t = 70;
    const HostMatrix x = HostMatrix::normal(t, 33, 1, 2);
    const HostMatrix w = HostMatrix::normal(129, 33, 2);
    const HostMatrix dy = HostMatrix::normal(t, 129, 3);
    HostMatrix y = HostMatrix::normal(t, 129, 4, 1);
    HostMatrix dx = HostMatrix::normal(t, 33, 5);
    HostMatrix dw = HostMatrix::normal(129, 33, 6);
    const Case forward{t, 129, 33, false, true, 2.0F, 1.0F, 0, 1};
    const Case input{t, 33, 129, false, false, 0.5F, 1.0F, 0, 1};
    const Case weight{129, 33, t, true, false, 0.25F, 1.0F, 0, 1};
    const Matrix64 want_y = reference(forward, x, w, y);
    const Matrix64 want_dx = reference(input, dy, w, dx);
    const Matrix64 want_dw = reference(weight, dy, x, dw);
    linear_forward(stream, x.view, w.view, y.view, 2.0F, 1.0F);
    linear_backward_input(stream, dy.view, w.view, dx.view, 0.5F, 1.0F);
    linear_backward_weight(stream, dy.view, x.view, dw.view, 0.25F);
    EXPECT_LT(relative_error(y, want_y), 1e-5);
    EXPECT_LT(relative_error(dx, want_dx), 1e-5);
    EXPECT_LT(relative_error(dw, want_dw), 1e-5);
  }
}

TEST(Gemm, LinearBackwardIsTheDerivative) {
  Stream stream(Device{});
  HostMatrix x = HostMatrix::normal(5, 4, 1, 2);
  HostMatrix w = HostMatrix::normal(6, 4, 2, 1);
  const HostMatrix dy = HostMatrix::normal(5, 6, 3);
  HostMatrix y(5, 6), dx(5, 4), dw(6, 4);
  linear_backward_input(stream, dy.view, w.view, dx.view, 0.5F);
  linear_backward_weight(stream, dy.view, x.view, dw.view, 0.5F);
  const auto loss = [&](const Matrix64& a, const Matrix64& b) {  // <a b^T / 2, dy>
    double total = 0;
    for (int64_t t = 0; t < 5; ++t)
      for (int64_t o = 0; o < 6; ++o)
        for (int64_t i = 0; i < 4; ++i) total += 0.5 * a(t, i) * b(o, i) * dy(t, o);
    return total;
  };
  const auto of_x = [&](const Matrix64& a) { return loss(a, Matrix64(w)); };
  const auto of_w = [&](const Matrix64& b) { return loss(Matrix64(x), b); };
  EXPECT_LT(relative_error(dx, finite_differences(Matrix64(x), of_x)), 1e-5);
  EXPECT_LT(relative_error(dw, finite_differences(Matrix64(w), of_w)), 1e-5);
  const auto run = [&] {
    linear_forward(stream, x.view, w.view, y.view, 0.5F);
    return dot(y.values(), dy.values());
  };
  EXPECT_LT(relative_error(dx, finite_differences_f32(x, run)), 1e-2);
  EXPECT_LT(relative_error(dw, finite_differences_f32(w, run)), 1e-2);
}

TEST(Gemm, CMayBeReadFromAnotherTensor) {
  Stream stream(Device{.threads = 2});
  const HostMatrix a = HostMatrix::normal(70, 20, 1), b = HostMatrix::normal(20, 33, 2);
  const HostMatrix from = HostMatrix::normal(70, 33, 3, 2);
  for (const float beta : {1.0F, -0.5F, 0.0F}) {
    HostMatrix in_place = from, out(70, 33, 1, NAN);
    gemm(stream, {.a = a.view, .b = b.view, .c = in_place.view, .beta = beta});
    gemm(stream, {.a = a.view, .b = b.view, .c = out.view, .beta = beta, .from = from.view});
    EXPECT_EQ(out.values(), in_place.values()) << beta;
    EXPECT_TRUE(out.gaps_untouched());
  }
}

}  // namespace
}  // namespace pesc
