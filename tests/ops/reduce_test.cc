// Data movements and sums against plain loops, with odd shapes, strides and empty tensors.
#include "ops/reduce.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "tests/ops/host_matrix.h"
#include "tests/ops/reference.h"

namespace pesc {
namespace {

struct Shape {
  int64_t rows, cols, gap;
  int threads;
};
const std::vector<Shape> kShapes = {{0, 5, 0, 1},  {3, 0, 2, 1},     {1, 1, 0, 1},     {7, 13, 0, 1},
                                    {7, 13, 3, 2}, {300, 257, 0, 2}, {300, 257, 5, 2}, {2, 40000, 1, 2}};

TEST(Reduce, FillZeroWritesItsTensorAlone) {
  for (const Shape& s : kShapes) {
    Stream stream(Device{.threads = s.threads});
    HostMatrix x = HostMatrix::normal(s.rows, s.cols, 1, s.gap);
    fill_zero(stream, x.view);
    for (int64_t r = 0; r < s.rows; ++r)
      for (int64_t c = 0; c < s.cols; ++c) ASSERT_EQ(x(r, c), 0.0F);
    EXPECT_TRUE(x.gaps_untouched());
  }
  Stream stream(Device{});
  std::vector<int64_t> wide(6, 5);
  fill_zero(stream, Tensor{wide.data(), DType::kI64, 2, 2, 3});
  EXPECT_EQ(wide, (std::vector<int64_t>{0, 0, 5, 0, 0, 5}));
}

TEST(Reduce, CopyAndAddWriteTheirTensorAlone) {
  for (const Shape& s : kShapes) {
    Stream stream(Device{.threads = s.threads});
    HostMatrix x = HostMatrix::normal(s.rows, s.cols, 1, s.gap);
    HostMatrix y = HostMatrix::normal(s.rows, s.cols, 2, 4);
    HostMatrix before = y;
    add(stream, x.view, y.view);
    for (int64_t r = 0; r < s.rows; ++r)
      for (int64_t c = 0; c < s.cols; ++c) ASSERT_EQ(y(r, c), before(r, c) + x(r, c)) << "row " << r;
    EXPECT_TRUE(y.gaps_untouched());
    copy(stream, x.view, y.view);
    for (int64_t r = 0; r < s.rows; ++r)
      for (int64_t c = 0; c < s.cols; ++c) ASSERT_EQ(y(r, c), x(r, c));
    EXPECT_TRUE(y.gaps_untouched());
  }
}

TEST(Reduce, BiasAndItsBackward) {
  for (const Shape& s : kShapes) {
    Stream stream(Device{.threads = s.threads});
    HostMatrix y = HostMatrix::normal(s.rows, s.cols, 1, s.gap);
    HostMatrix bias = HostMatrix::normal(1, s.cols, 2, 0);
    const HostMatrix y0 = y;
    const HostMatrix bias0 = bias;
    add_bias(stream, bias.view, y.view);
    HostMatrix want = y0;
    for (int64_t r = 0; r < s.rows; ++r)
      for (int64_t c = 0; c < s.cols; ++c) ASSERT_EQ(y(r, c), want(r, c) + bias(0, c));
    EXPECT_TRUE(y.gaps_untouched());
    bias_backward(stream, y.view, bias.view);
    HostMatrix start = bias0;
    for (int64_t c = 0; c < s.cols; ++c) {
      double sum = start(0, c);
      for (int64_t r = 0; r < s.rows; ++r) sum += y(r, c);
      ASSERT_NEAR(bias(0, c), sum, 1e-4 * (1 + std::abs(sum)));
    }
  }
}

TEST(Reduce, BiasBackwardIsTheDerivative) {
  Stream stream(Device{});
  HostMatrix bias = HostMatrix::normal(1, 6, 1);
  const HostMatrix x = HostMatrix::normal(7, 6, 2);
  const HostMatrix dy = HostMatrix::normal(7, 6, 3, 1);
  HostMatrix dbias(1, 6);
  bias_backward(stream, dy.view, dbias.view);
  const auto loss = [&](const Matrix64& b) {
    double total = 0;
    for (int64_t r = 0; r < 7; ++r)
      for (int64_t c = 0; c < 6; ++c) total += (x(r, c) + b(0, c)) * dy(r, c);
    return total;
  };
  EXPECT_LT(relative_error(dbias, finite_differences(Matrix64(bias), loss)), 1e-5);
  const auto run = [&] {
    HostMatrix y = x;
    add_bias(stream, bias.view, y.view);
    return dot(y.values(), dy.values());
  };
  EXPECT_LT(relative_error(dbias, finite_differences_f32(bias, run)), 1e-2);
}

TEST(Reduce, GatherAndScatterAdd) {
  for (int threads : {1, 2}) {
    Stream stream(Device{.threads = threads});
    constexpr int64_t kTable = 37;
    constexpr int64_t kCount = 150;
    constexpr int64_t kCols = 301;
    HostMatrix table = HostMatrix::normal(kTable, kCols, 1, 3);
    std::vector<int32_t> index(kCount);
    std::mt19937 random(3);
    for (int32_t& i : index) i = static_cast<int32_t>(random() % kTable);  // rows repeat
    const Tensor at = tensor_of(index.data(), 1, kCount);
    HostMatrix many = HostMatrix::normal(kCount, kCols, 4, 2);
    gather_rows(stream, table.view, at, many.view);
    for (int64_t i = 0; i < kCount; ++i)
      for (int64_t c = 0; c < kCols; ++c) ASSERT_EQ(many(i, c), table(index[static_cast<size_t>(i)], c));
    EXPECT_TRUE(many.gaps_untouched());

    HostMatrix more = HostMatrix::normal(kCount, kCols, 5, 1);
    HostMatrix want = table;
    scatter_add_rows(stream, more.view, at, table.view);
    for (int64_t i = 0; i < kCount; ++i)  // in rising i, so bitwise
      for (int64_t c = 0; c < kCols; ++c) want(index[static_cast<size_t>(i)], c) += more(i, c);
    EXPECT_EQ(table.data, want.data);
    EXPECT_TRUE(table.gaps_untouched());
  }
}

TEST(Reduce, IndexOutsideTheTableThrows) {
  Stream stream(Device{});
  HostMatrix table = HostMatrix::normal(3, 2, 1, 0);
  HostMatrix rows = HostMatrix::normal(2, 2, 2, 0);
  for (int32_t bad : {-1, 3}) {
    std::vector<int32_t> index = {0, bad};
    EXPECT_THROW(gather_rows(stream, table.view, tensor_of(index.data(), 1, 2), rows.view), InternalError);
    EXPECT_THROW(scatter_add_rows(stream, rows.view, tensor_of(index.data(), 1, 2), table.view),
                 InternalError);
  }
}

TEST(Reduce, ShapesMustAgree) {
  Stream stream(Device{});
  HostMatrix a = HostMatrix::normal(3, 2, 1, 0);
  HostMatrix b = HostMatrix::normal(2, 3, 2, 0);
  EXPECT_THROW(copy(stream, a.view, b.view), InternalError);
  EXPECT_THROW(add(stream, a.view, b.view), InternalError);
  EXPECT_THROW(add_bias(stream, b.view, a.view), InternalError);
}

TEST(Reduce, SumsAreInDoubleAndAddToTheirOutput) {
  for (const Shape& s : kShapes) {
    Stream stream(Device{.threads = s.threads});
    HostMatrix x = HostMatrix::normal(s.rows, s.cols, 6, s.gap);
    double sums = 10;
    double squares = -4;
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t c = 0; c < s.cols; ++c) {
        sums += x(r, c);
        squares += static_cast<double>(x(r, c)) * x(r, c);
      }
    }
    double got = 10;
    const Tensor out{&got, DType::kF64, 1, 1, 1};
    sum(stream, x.view, out);
    EXPECT_NEAR(got, sums, 1e-9);
    got = -4;
    sum_squares(stream, x.view, out);
    EXPECT_NEAR(got, squares, 1e-12 * (1 + squares) + 1e-9);
  }
}

TEST(Reduce, SumsDoNotDependOnThreadsOrStride) {
  constexpr int64_t kRows = 123;
  constexpr int64_t kCols = 1711;
  HostMatrix strided = HostMatrix::normal(kRows, kCols, 7, 9);
  HostMatrix dense = HostMatrix::normal(kRows, kCols, 7, 0);
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kCols; ++c) ASSERT_EQ(strided(r, c), dense(r, c));
  std::vector<double> results;
  for (int threads : {1, 2, 3, 7}) {
    for (const Tensor& x : {strided.view, dense.view, dense.view.reshaped(1, kRows * kCols)}) {
      Stream stream(Device{.threads = threads});
      double got = 0;
      sum_squares(stream, x, Tensor{&got, DType::kF64, 1, 1, 1});
      results.push_back(got);
    }
  }
  for (double r : results) EXPECT_EQ(r, results[0]);
}

TEST(Reduce, SumsKeepSmallTermsAndReportNonFinite) {
  Stream stream(Device{});
  std::vector<float> x(100000, 1e-4F);
  x[0] = 1e4F;
  double got = 0;
  const Tensor out{&got, DType::kF64, 1, 1, 1};
  sum(stream, tensor_of(x.data(), 1, 100000), out);
  EXPECT_NEAR(got, 1e4 + 99999 * static_cast<double>(1e-4F), 1e-8);
  x[77777] = NAN;
  sum(stream, tensor_of(x.data(), 1, 100000), out);
  EXPECT_TRUE(std::isnan(got));
  x[77777] = INFINITY;
  got = 0;
  sum_squares(stream, tensor_of(x.data(), 1, 100000), out);
  EXPECT_TRUE(std::isinf(got));
}

}  // namespace
}  // namespace pesc
