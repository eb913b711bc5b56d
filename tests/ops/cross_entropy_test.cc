// Cross entropy, on a whole vocabulary and on slices reduced by hand as the tp group does, against float64.
#include "ops/cross_entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/ops/reference.h"

namespace pesc {
namespace {

struct Shape {
  int64_t rows, vocab, slices, gap;
  int threads;
};
const std::vector<Shape> kShapes = {{0, 8, 2, 0, 1},     {1, 1, 1, 0, 1},   {3, 17, 1, 2, 1},
                                    {65, 63, 2, 0, 2},   {7, 130, 3, 5, 1}, {40, 3000, 1, 0, 2},
                                    {33, 4097, 4, 1, 2}, {4, 3, 5, 0, 1}};

struct Result64 {
  Matrix64 loss, grad;
};

Result64 reference(const Matrix64& logits, const std::vector<int32_t>& targets, double scale) {
  Result64 out{Matrix64(1, logits.rows), Matrix64(logits.rows, logits.cols)};
  for (int64_t r = 0; r < logits.rows; ++r) {
    const int64_t target = targets[static_cast<size_t>(r)];
    double top = logits(r, 0);
    for (int64_t v = 1; v < logits.cols; ++v) top = std::max(top, logits(r, v));
    double sum = 0;
    for (int64_t v = 0; v < logits.cols; ++v) sum += std::exp(logits(r, v) - top);
    out.loss(0, r) = std::log(sum) - (logits(r, target) - top);
    for (int64_t v = 0; v < logits.cols; ++v)
      out.grad(r, v) = scale * (std::exp(logits(r, v) - top) / sum - (v == target ? 1 : 0));
  }
  return out;
}

// The three steps over the slices of the columns; `logits` becomes the gradient.
void run(HostMatrix& logits, std::vector<int32_t>& targets, int64_t slices, int threads, float scale,
         HostMatrix& loss) {
  Stream stream(Device{.threads = threads});
  const int64_t rows = logits.view.rows;
  const Tensor t = tensor_of(targets.data(), 1, rows);
  const auto begin = [&](int64_t s) { return logits.view.cols * s / slices; };
  HostMatrix max(1, rows, 0, -std::numeric_limits<float>::infinity());
  HostMatrix sums(2, rows, 3);
  for (int64_t s = 0; s < slices; ++s) {
    HostMatrix part(1, rows);
    cross_entropy_max(stream, logits.view.col_range(begin(s), begin(s + 1)), part.view);
    for (int64_t r = 0; r < rows; ++r) max(0, r) = std::max(max(0, r), part(0, r));
  }
  for (int64_t s = 0; s < slices; ++s) {
    HostMatrix part(2, rows, 0, 7.0F);
    cross_entropy_sums(stream, logits.view.col_range(begin(s), begin(s + 1)), t, begin(s), max.view,
                       part.view);
    for (int64_t r = 0; r < rows; ++r) {
      sums(0, r) += part(0, r);
      sums(1, r) += part(1, r);
    }
  }
  HostMatrix alone(1, rows);
  cross_entropy_loss(stream, sums.view, alone.view);
  for (int64_t s = 0; s < slices; ++s)
    cross_entropy_grad(stream, {logits.view.col_range(begin(s), begin(s + 1)), t, begin(s), max.view,
                                sums.view, scale, loss.view});
  for (int64_t r = 0; r < rows; ++r)
    EXPECT_TRUE(loss(0, r) == alone(0, r) || (std::isnan(loss(0, r)) && std::isnan(alone(0, r))));
}

TEST(CrossEntropy, LossAndGradientMatchTheReference) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(str_cat(s.rows, "x", s.vocab, " in ", s.slices));
    std::vector<int32_t> targets = random_ints(s.rows, 0, static_cast<int32_t>(s.vocab) - 1, 1);
    HostMatrix logits = HostMatrix::normal(s.rows, s.vocab, 2, s.gap, 4);
    const Result64 want = reference(Matrix64(logits), targets, 0.3F);
    HostMatrix loss(1, s.rows);
    run(logits, targets, s.slices, s.threads, 0.3F, loss);
    EXPECT_LT(relative_error(loss, want.loss), 1e-5);
    EXPECT_LT(relative_error(logits, want.grad), 1e-5);
    EXPECT_TRUE(logits.gaps_untouched());
  }
}

TEST(CrossEntropy, LargeLogitsDoNotOverflow) {
  HostMatrix logits(2, 5, 0, 1e30F);
  logits(1, 2) = -1e30F;
  std::vector<int32_t> targets = {0, 2};
  HostMatrix loss(1, 2);
  run(logits, targets, 2, 1, 1.0F, loss);
  EXPECT_NEAR(loss(0, 0), std::log(5.0), 1e-6);
  EXPECT_NEAR(logits(0, 1), 0.2, 1e-6);
  EXPECT_FLOAT_EQ(loss(0, 1), 2e30F);
  EXPECT_NEAR(logits(1, 2), -1, 1e-6);
}

TEST(CrossEntropy, NotANumberReachesTheLoss) {
  HostMatrix logits(1, 20, 0, 1.0F);
  logits(0, 7) = std::numeric_limits<float>::quiet_NaN();
  std::vector<int32_t> targets = {0};
  HostMatrix loss(1, 1);
  run(logits, targets, 1, 1, 1.0F, loss);
  EXPECT_TRUE(std::isnan(loss(0, 0)));
}

TEST(CrossEntropy, GradientIsTheDerivative) {
  std::vector<int32_t> targets = {2, 0, 6};
  HostMatrix logits = HostMatrix::normal(3, 7, 2);
  const auto total = [&](const Matrix64& x) {
    double sum = 0;
    for (double v : reference(x, targets, 1).loss.data) sum += v;
    return sum;
  };
  HostMatrix grad = logits;
  HostMatrix loss(1, 3);
  run(grad, targets, 2, 1, 1.0F, loss);
  EXPECT_LT(relative_error(grad, finite_differences(Matrix64(logits), total)), 1e-4);
  const auto op = [&] {
    HostMatrix copy = logits;
    run(copy, targets, 1, 1, 1.0F, loss);
    return static_cast<double>(loss(0, 0)) + loss(0, 1) + loss(0, 2);
  };
  EXPECT_LT(relative_error(grad, finite_differences_f32(logits, op)), 1e-2);
}

TEST(CrossEntropy, ASliceWithoutColumnsIsNeutral) {
  Stream stream(Device{});
  const HostMatrix logits(3, 0);
  std::vector<int32_t> targets = {0, 1, 2};
  HostMatrix max(1, 3);
  HostMatrix sums(2, 3, 0, 4.0F);
  cross_entropy_max(stream, logits.view, max.view);
  EXPECT_EQ(max(0, 1), -std::numeric_limits<float>::infinity());
  max.fill(1);
  cross_entropy_sums(stream, logits.view, tensor_of(targets.data(), 1, 3), 0, max.view, sums.view);
  EXPECT_EQ(sums(0, 2), 0.0F);
  EXPECT_EQ(sums(1, 2), 0.0F);
}

}  // namespace
}  // namespace pesc
