// Dropout: the mask is exactly the documented function of (seed, step, layer, site, sample, position,
// column), whatever the cut into columns, the order of the rows and the number of threads.
#include "ops/dropout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "ops/core/philox.h"

namespace pesc {
namespace {

// The mask of one element, from the scalar generator.
bool keeps(const Dropout& d, int64_t sample, int32_t position, int64_t column) {
  const auto s = static_cast<uint64_t>(sample);
  const PhiloxCounter counter = {static_cast<uint32_t>(column / 8), static_cast<uint32_t>(position),
                                 static_cast<uint32_t>(s), d.layer << 8 | static_cast<uint32_t>(d.site)};
  const PhiloxKey key = {static_cast<uint32_t>(d.seed) ^ static_cast<uint32_t>(s >> 32) * 0x85EBCA6BU,
                         d.step ^ static_cast<uint32_t>(d.seed >> 32) * 0x9E3779B9U};
  const uint32_t word = philox<7>(counter, key)[static_cast<size_t>(column % 8 / 2)];
  const double bits = column % 2 == 0 ? word & 0xFFFF : word >> 16;
  return bits >= std::round(static_cast<double>(d.rate) * 65536.0);
}

// Of the rate 0.3: the share of 2^16 that is kept, turned round.
constexpr float kScale = 65536.0F / (65536.0F - 19661.0F);

struct Case {
  std::vector<int64_t> samples;
  std::vector<int32_t> positions;
  Dropout dropout;

  explicit Case(int64_t tokens, float rate = 0.3F) {
    std::mt19937 random(static_cast<unsigned>(tokens));
    for (int64_t t = 0; t < tokens; ++t) {
      samples.push_back(static_cast<int64_t>(random()) << (t % 3 == 0 ? 20 : 0));
      positions.push_back(static_cast<int32_t>(random() % 4096));
    }
    dropout.rate = rate;
    dropout.seed = 0xABCDEF0123456789ULL;
    dropout.step = 17;
    dropout.layer = 3;
    dropout.site = DropoutSite::kDown;
    dropout.samples = tensor_of(samples.data(), 1, tokens);
    dropout.positions = tensor_of(positions.data(), 1, tokens);
  }
};

std::vector<float> random_values(int64_t n) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(n));
  for (float& v : out) v = normal(random);
  return out;
}

std::vector<float> apply(const Dropout& d, const std::vector<float>& x, int64_t rows, int64_t cols,
                         int threads = 1) {
  Stream stream(Device{.threads = threads});
  std::vector<float> in = x;
  std::vector<float> out(x.size(), NAN);
  dropout(stream, d, tensor_of(in.data(), rows, cols), tensor_of(out.data(), rows, cols));
  EXPECT_EQ(in, x);
  return out;
}

TEST(Dropout, MatchesTheScalarFunctionAtEveryWidth) {
  for (int64_t cols : {1, 3, 4, 31, 63, 64, 65, 127, 128, 129, 200, 333}) {
    for (int64_t column0 : {0, 1, 2, 3, 127, 4096}) {
      Case c(5);
      c.dropout.column0 = column0;
      const auto x = random_values(5 * cols);
      const auto y = apply(c.dropout, x, 5, cols);
      for (int64_t t = 0; t < 5; ++t) {
        for (int64_t col = 0; col < cols; ++col) {
          const auto i = static_cast<size_t>(t * cols + col);
          const bool kept = keeps(c.dropout, c.samples[static_cast<size_t>(t)],
                                  c.positions[static_cast<size_t>(t)], column0 + col);
          ASSERT_FLOAT_EQ(y[i], kept ? x[i] * kScale : 0.0F)
              << cols << " " << column0 << " " << t << " " << col;
        }
      }
    }
  }
}

TEST(Dropout, CutsOverColumnsDoNotMatter) {
  Case c(4);
  const auto x = random_values(4 * 200);
  const auto whole = apply(c.dropout, x, 4, 200);
  for (int64_t cut : {1, 50, 66, 128, 199}) {
    std::vector<float> y = x;
    Stream stream(Device{});
    const Tensor all = tensor_of(y.data(), 4, 200);
    dropout(stream, c.dropout, all.col_range(0, cut), all.col_range(0, cut));
    Dropout right = c.dropout;
    right.column0 = cut;
    dropout(stream, right, all.col_range(cut, 200), all.col_range(cut, 200));
    EXPECT_EQ(y, whole) << cut;
  }
}

TEST(Dropout, RowOrderAndThreadsDoNotMatter) {
  constexpr int64_t kRows = 700;
  constexpr int64_t kCols = 130;
  Case c(kRows);
  const auto x = random_values(kRows * kCols);
  const auto y = apply(c.dropout, x, kRows, kCols);
  EXPECT_EQ(y, apply(c.dropout, x, kRows, kCols, 2));
  // Reversed rows.
  std::vector<float> reversed(x.size());
  for (int64_t r = 0; r < kRows; ++r)
    std::copy_n(x.begin() + r * kCols, kCols, reversed.begin() + (kRows - 1 - r) * kCols);
  std::reverse(c.samples.begin(), c.samples.end());
  std::reverse(c.positions.begin(), c.positions.end());
  const auto z = apply(c.dropout, reversed, kRows, kCols);
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t col = 0; col < kCols; ++col)
      ASSERT_EQ(z[static_cast<size_t>((kRows - 1 - r) * kCols + col)],
                y[static_cast<size_t>(r * kCols + col)]);
}

TEST(Dropout, EveryPartOfTheKeyCounts) {
  Case c(3);
  const std::vector<float> ones(3 * 256, 1.0F);
  const auto base = apply(c.dropout, ones, 3, 256);
  const auto differs = [&](auto change) {
    Dropout d = c.dropout;
    change(d);
    return apply(d, ones, 3, 256) != base;
  };
  EXPECT_TRUE(differs([](Dropout& d) { d.seed += 1; }));
  EXPECT_TRUE(differs([](Dropout& d) { d.seed ^= 1ULL << 45; }));
  EXPECT_TRUE(differs([](Dropout& d) { d.step += 1; }));
  EXPECT_TRUE(differs([](Dropout& d) { d.layer += 1; }));
  EXPECT_TRUE(differs([](Dropout& d) { d.site = DropoutSite::kAdapter; }));
  EXPECT_TRUE(differs([](Dropout& d) { d.column0 += 8; }));
  c.samples[1] ^= 1LL << 40;
  EXPECT_TRUE(differs([](Dropout&) {}));
  c.samples[1] ^= 1LL << 40;
  EXPECT_FALSE(differs([](Dropout&) {}));
  c.positions[2] += 1;
  EXPECT_TRUE(differs([](Dropout&) {}));
}

TEST(Dropout, RateIsTheShareDropped) {
  for (float rate : {0.05F, 0.1F, 0.5F, 0.9F}) {
    Case c(400, rate);
    const std::vector<float> ones(400 * 250, 1.0F);
    const auto y = apply(c.dropout, ones, 400, 250);
    double mean = 0;
    int64_t dropped = 0;
    for (float v : y) {
      mean += v;
      dropped += v == 0;
    }
    const auto n = static_cast<double>(y.size());
    EXPECT_NEAR(static_cast<double>(dropped) / n, rate, 5 * std::sqrt(rate * (1 - rate) / n));
    EXPECT_NEAR(mean / n, 1, 5 * std::sqrt(rate / (1 - rate) / n));
  }
}

TEST(Dropout, AddUsesTheSameMaskAndAliasingIsAllowed) {
  Case c(6);
  const auto x = random_values(6 * 150);
  const auto y = apply(c.dropout, x, 6, 150);
  Stream stream(Device{});
  std::vector<float> in = x;
  std::vector<float> sum(x.size(), 2.0F);
  dropout_add(stream, c.dropout, tensor_of(in.data(), 6, 150), tensor_of(sum.data(), 6, 150));
  for (size_t i = 0; i < x.size(); ++i) ASSERT_FLOAT_EQ(sum[i], 2.0F + y[i]);
  dropout(stream, c.dropout, tensor_of(in.data(), 6, 150), tensor_of(in.data(), 6, 150));
  EXPECT_EQ(in, y);
}

// The mask of the gradient is that of the value: d <dropout(x), g> / dx = dropout(g).
TEST(Dropout, ItIsItsOwnDerivative) {
  Case c(6);
  auto x = random_values(6 * 24);
  const auto g = random_values(6 * 24 + 1);
  const std::vector<float> dy(g.begin() + 1, g.end());
  const auto dx = apply(c.dropout, dy, 6, 24);
  const auto loss = [&] {
    const auto y = apply(c.dropout, x, 6, 24);
    double total = 0;
    for (size_t i = 0; i < y.size(); ++i) total += static_cast<double>(y[i]) * dy[i];
    return total;
  };
  for (size_t i = 0; i < x.size(); ++i) {
    const float kept = x[i];
    x[i] = kept + 0.5F;
    const double above = loss();
    x[i] = kept - 0.5F;
    const double below = loss();
    x[i] = kept;
    ASSERT_NEAR(dx[i], above - below, 1e-4) << i;
  }
}

TEST(Dropout, ResidualIsTheSumAndTheMaskedAddend) {
  for (const float rate : {0.3F, 0.0F}) {
    Case c(6, rate);
    const auto x = random_values(6 * 150);
    std::vector<float> residual(x.size());
    for (size_t i = 0; i < x.size(); ++i) residual[i] = 3.0F - 2.0F * x[i];
    std::vector<float> f = x;
    std::vector<float> sum(x.size(), NAN);
    Stream stream(Device{});
    const auto at = [](std::vector<float>& v) { return tensor_of(v.data(), 6, 150); };
    std::vector<float> masked(x.size(), NAN);
    std::vector<float> same(x.size(), NAN);
    dropout_residual(stream, c.dropout, at(residual), at(f), at(same), at(masked));
    EXPECT_EQ(f, x);
    dropout_residual(stream, c.dropout, at(residual), at(f), at(sum), at(f));
    EXPECT_EQ(f, apply(c.dropout, x, 6, 150));
    EXPECT_EQ(masked, f);
    EXPECT_EQ(same, sum);
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(sum[i], residual[i] + x[i]);
    // And the sum of a masked tensor with another one, in each place where it may be written.
    std::vector<float> base = residual;
    std::vector<float> in = x;
    std::vector<float> out(x.size(), NAN);
    dropout_sum(stream, c.dropout, at(in), at(base), at(out));
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(out[i], residual[i] + f[i]);
    dropout_sum(stream, c.dropout, at(in), at(base), at(base));
    EXPECT_EQ(base, out);
    dropout_sum(stream, c.dropout, at(in), at(residual), at(in));
    EXPECT_EQ(in, out);
  }
}

TEST(Dropout, ScaleKeepsTheExpectation) {
  for (const float rate : {1e-6F, 0.1F, 0.5F, 0.999999F}) {
    Dropout d;
    d.rate = rate;
    EXPECT_NEAR(d.threshold() / 65536.0, rate, 1.1 / 65536);
    EXPECT_NEAR(d.scale() * (1 - d.threshold() / 65536.0), 1, 1e-6);
  }
}

TEST(Dropout, StridesLeaveTheGapsAlone) {
  Case c(3);
  const auto x = random_values(3 * 20);
  std::vector<float> in = x;
  std::vector<float> out(3 * 25, -1.0F);
  Stream stream(Device{});
  dropout(stream, c.dropout, Tensor{in.data(), DType::kF32, 3, 17, 20},
          Tensor{out.data(), DType::kF32, 3, 17, 25});
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t col = 0; col < 25; ++col) {
      const float v = out[static_cast<size_t>(r * 25 + col)];
      if (col >= 17) {
        ASSERT_EQ(v, -1.0F);
      } else {
        const bool kept =
            keeps(c.dropout, c.samples[static_cast<size_t>(r)], c.positions[static_cast<size_t>(r)], col);
        ASSERT_FLOAT_EQ(v, kept ? x[static_cast<size_t>(r * 20 + col)] * kScale : 0.0F);
      }
    }
  }
}

TEST(Dropout, RateZeroCopiesAndNeedsNoIdentities) {
  Dropout none;
  const auto x = random_values(12);
  EXPECT_EQ(apply(none, x, 3, 4), x);
  Stream stream(Device{});
  std::vector<float> in = x;
  std::vector<float> out(12, 1.0F);
  dropout_add(stream, none, tensor_of(in.data(), 3, 4), tensor_of(out.data(), 3, 4));
  for (size_t i = 0; i < 12; ++i) EXPECT_EQ(out[i], x[i] + 1.0F);
}

TEST(Dropout, DroppedValuesAreZeroEvenWhenNotFinite) {
  Case c(2);
  const std::vector<float> x(2 * 64, INFINITY);
  for (float v : apply(c.dropout, x, 2, 64)) EXPECT_TRUE(v == 0.0F || v == INFINITY);
}

TEST(Dropout, NoRowsAndBadArguments) {
  Case c(0);
  EXPECT_TRUE(apply(c.dropout, {}, 0, 8).empty());
  Case two(2);
  EXPECT_THROW(apply(two.dropout, random_values(24), 3, 8), InternalError);
  two.dropout.rate = 1.0F;
  EXPECT_THROW(apply(two.dropout, random_values(16), 2, 8), InternalError);
}

}  // namespace
}  // namespace pesc
