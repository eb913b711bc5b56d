// A frozen weight in each format: the memory that it takes, what the loader writes, and its GEMMs on the
// CPU against sums in float64. The GEMMs on the GPU are in frozen_linear_gpu_test.cc.
#include "model/frozen_linear.h"

#include <gtest/gtest.h>

#include <limits>

#include "ops/core/bf16.h"
#include "ops/core/check.h"
#include "tests/ops/host_matrix.h"

namespace pesc {
namespace {

constexpr FrozenFormat kFormats[] = {FrozenFormat::kF32, FrozenFormat::kBF16};

struct Shape {
  int64_t out, in, lora;
};

TEST(FrozenLinear, TakesWhatWasPlanned) {
  for (const FrozenFormat format : kFormats) {
    for (const Shape& s : {Shape{24, 16, 0}, {24, 16, 8}, {5, 7, 3}, {1, 1, 0}}) {
      SCOPED_TRACE(str_cat(frozen_format_name(format), " ", s.out, "x", s.in, " and ", s.lora));
      Arena plan = Arena::planning("plan");
      const FrozenLinear planned = FrozenLinear::allocate(plan, format, s.out, s.in, s.lora);
      Arena real("real", Device{}, plan.used());
      const FrozenLinear w = FrozenLinear::allocate(real, format, s.out, s.in, s.lora);
      EXPECT_EQ(real.used(), plan.used());
      EXPECT_EQ(w.out, s.out);
      EXPECT_EQ(w.in, s.in);
      EXPECT_EQ(w.type.format, format);
      EXPECT_EQ(w.lora_columns(), planned.lora_columns());
      EXPECT_TRUE(w.weight.present());
      EXPECT_EQ(w.bytes(), s.out * s.in * (format == FrozenFormat::kF32 ? 4 : 2));
      EXPECT_EQ(linear_scratch_bytes(Device{}, w, 1000), 0);
    }
  }
}

TEST(FrozenLinear, HasLoraBesideItInBf16AndAlignedWidthsOnly) {
  const auto columns = [](FrozenFormat format, int64_t in, int64_t lora) {
    Arena plan = Arena::planning("plan");
    return FrozenLinear::allocate(plan, format, 10, in, lora).lora_columns();
  };
  EXPECT_EQ(columns(FrozenFormat::kBF16, 16, 8), 8);
  EXPECT_EQ(columns(FrozenFormat::kBF16, 16, 24), 24);
  EXPECT_EQ(columns(FrozenFormat::kBF16, 16, 0), 0);
  EXPECT_EQ(columns(FrozenFormat::kBF16, 16, 4), 0);
  EXPECT_EQ(columns(FrozenFormat::kBF16, 20, 8), 0);
  EXPECT_EQ(columns(FrozenFormat::kF32, 16, 8), 0);
}

TEST(FrozenLinear, RowsAndThePlaceOfBAreViews) {
  Arena memory("memory", Device{}, 4096);
  const FrozenLinear w = FrozenLinear::allocate(memory, FrozenFormat::kBF16, 6, 16, 16);
  const FrozenLinear some = w.rows(2, 5);
  EXPECT_EQ(some.out, 3);
  EXPECT_EQ(some.in, 16);
  EXPECT_EQ(some.lora_columns(), 16);
  EXPECT_EQ(some.weight.data, w.weight.row_range(2, 5).data);
  const Tensor b = w.lora_b({2, 5}, {8, 16});
  EXPECT_EQ(b.rows, 3);
  EXPECT_EQ(b.cols, 8);
  EXPECT_EQ(b.data, w.weight_and_lora_b.row_range(2, 5).col_range(24, 32).data);
  const FrozenLinear alone = FrozenLinear::allocate(memory, FrozenFormat::kF32, 6, 16, 16);
  EXPECT_EQ(alone.lora_b({2, 5}, {8, 16}).cols, 0);
}

TEST(FrozenLinear, IsWrittenRowByRowAndLeavesBAlone) {
  const HostMatrix values = HostMatrix::normal(6, 8, 1);
  for (const FrozenFormat format : kFormats) {
    Arena memory("memory", Device{}, 4096);
    Stream stream((Device()));
    const FrozenLinear w = FrozenLinear::allocate(memory, format, 6, 8, 8);
    FrozenWriter writer(stream, w);
    EXPECT_EQ(writer.write(0, 4, values.data.data()), -1);
    EXPECT_EQ(writer.write(4, 2, values.data.data() + 4 * 8), -1);
    std::vector<float> got;
    copy_to_host(stream, w.weight, got);
    for (size_t i = 0; i < got.size(); ++i) {
      const float want = values.data[i];
      EXPECT_EQ(got[i], format == FrozenFormat::kF32 ? want : bf16_to_f32(f32_to_bf16(want))) << i;
    }
    if (w.lora_columns() == 0) continue;
    copy_to_host(stream, w.lora_b({0, 6}, {0, 8}), got);
    EXPECT_EQ(got, std::vector<float>(6 * 8, 0.0F));
  }
}

TEST(FrozenLinear, NamesTheFirstValueThatItsFormatCannotHold) {
  Arena memory("memory", Device{}, 4096);
  Stream stream((Device()));
  std::vector<float> values(4 * 8, 1.0F);
  values[19] = -3.4e38F;  // finite, and nearer to infinity than to BF16's largest
  values[30] = std::numeric_limits<float>::infinity();
  const FrozenLinear narrow = FrozenLinear::allocate(memory, FrozenFormat::kBF16, 4, 8, 0);
  EXPECT_EQ(FrozenWriter(stream, narrow).write(0, 4, values.data()), 19);
  std::vector<float> got;
  copy_to_host(stream, narrow.weight, got);
  EXPECT_EQ(got, std::vector<float>(4 * 8, 0.0F));  // nothing was written
  const FrozenLinear exact = FrozenLinear::allocate(memory, FrozenFormat::kF32, 4, 8, 0);
  EXPECT_EQ(FrozenWriter(stream, exact).write(0, 4, values.data()), -1);
  copy_to_host(stream, exact.weight, got);
  EXPECT_EQ(got, values);
}

// sum over j of a[i, j] b[k, j]
std::vector<double> product(const HostMatrix& a, const HostMatrix& b) {
  std::vector<double> out;
  for (int64_t i = 0; i < a.view.rows; ++i) {
    for (int64_t k = 0; k < b.view.rows; ++k) {
      double sum = 0;
      for (int64_t j = 0; j < a.view.cols; ++j)
        sum += static_cast<double>(a(i, j)) * static_cast<double>(b(k, j));
      out.push_back(sum);
    }
  }
  return out;
}
HostMatrix transposed(const HostMatrix& m) {
  HostMatrix out(m.view.cols, m.view.rows);
  for (int64_t i = 0; i < m.view.rows; ++i)
    for (int64_t j = 0; j < m.view.cols; ++j) out(j, i) = m(i, j);
  return out;
}

// With B beside the weight and without, and with a residual.
TEST(FrozenLinear, MultipliesInFloat32) {
  constexpr int64_t kOut = 37, kIn = 29, kTokens = 65;
  Stream stream(Device{.threads = 2});
  Arena scratch("scratch", Device{}, 1);
  for (const int64_t lora : {0, 6}) {
    const HostMatrix both = HostMatrix::normal(kOut, kIn + lora, 1);
    FrozenLinear w = FrozenLinear::of(both.view.col_range(0, kIn));
    if (lora > 0) w.weight_and_lora_b = both.view;
    const HostMatrix x = HostMatrix::normal(kTokens, kIn + lora, 2, 3);
    std::vector<double> want = product(x, both);
    HostMatrix y(kTokens, kOut, 5, std::numeric_limits<float>::quiet_NaN());
    linear_forward(stream, w, ConcatView(x.view, kIn), y.view, scratch);
    EXPECT_LT(relative_error(y.values(), want), 1e-5);
    EXPECT_TRUE(y.gaps_untouched());

    const HostMatrix residual = HostMatrix::normal(kTokens, kOut, 3);
    for (size_t i = 0; i < want.size(); ++i) want[i] += static_cast<double>(residual.data[i]);
    y.fill(std::numeric_limits<float>::quiet_NaN());
    linear_forward(stream, w, ConcatView(x.view, kIn), y.view, scratch, residual.view);
    EXPECT_LT(relative_error(y.values(), want), 1e-5);

    const HostMatrix dy = HostMatrix::normal(kTokens, kOut, 4, 1);
    HostMatrix dx(kTokens, kIn + lora, 2, std::numeric_limits<float>::quiet_NaN());
    linear_backward_input(stream, w, dy.view, ConcatView(dx.view, kIn), scratch);
    EXPECT_LT(relative_error(dx.values(), product(dy, transposed(both))), 1e-5);
    EXPECT_TRUE(dx.gaps_untouched());
  }
}

// Where B stands beside the weight, tokens that have no columns beside them see W alone.
TEST(FrozenLinear, LeavesBOutWhereTokensHaveNothingBesideThem) {
  const HostMatrix both = HostMatrix::normal(9, 16 + 8, 1);
  FrozenLinear w = FrozenLinear::of(both.view.col_range(0, 16));
  w.weight_and_lora_b = both.view;
  HostMatrix alone(9, 16);
  for (int64_t i = 0; i < 9; ++i)
    for (int64_t j = 0; j < 16; ++j) alone(i, j) = both(i, j);
  const HostMatrix x = HostMatrix::normal(7, 16, 2);
  HostMatrix y(7, 9);
  Stream stream((Device()));
  Arena scratch("scratch", Device{}, 1);
  linear_forward(stream, w, ConcatView(x.view, 16), y.view, scratch);
  EXPECT_LT(relative_error(y.values(), product(x, alone)), 1e-5);
}

TEST(FrozenLinear, RefusesColumnsThatAreNotBs) {
  const HostMatrix both = HostMatrix::normal(9, 16 + 8, 1);
  FrozenLinear w = FrozenLinear::of(both.view.col_range(0, 16));
  w.weight_and_lora_b = both.view;
  const HostMatrix x = HostMatrix::normal(7, 16 + 4, 2);
  HostMatrix y(7, 9);
  Stream stream((Device()));
  Arena scratch("scratch", Device{}, 1);
  EXPECT_THROW(linear_forward(stream, w, ConcatView(x.view, 16), y.view, scratch), InternalError);
  EXPECT_THROW(linear_backward_input(stream, w, y.view, ConcatView(x.view, 16), scratch), InternalError);
  EXPECT_THROW((void)plain_format(DType::kI32), InternalError);
}

}  // namespace
}  // namespace pesc
