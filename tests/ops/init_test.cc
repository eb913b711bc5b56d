// Initial values: exactly the documented function of (seed, stream, element), the same for every cut of the
// tensor, with the moments of their distributions.
#include "ops/init.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numbers>
#include <vector>

#include "ops/core/philox.h"

namespace pesc {
namespace {

constexpr uint64_t kSeed = 0x123456789ABCDEFULL;
constexpr uint64_t kStream = 0xFEDCBA9876543210ULL;

using Fill = std::function<void(Stream&, const InitPiece&)>;

std::vector<float> whole(const Fill& fill, int64_t rows, int64_t cols, uint64_t seed = kSeed,
                         uint64_t stream_id = kStream, int threads = 1) {
  Stream stream(Device{.threads = threads});
  std::vector<float> out(static_cast<size_t>(rows * cols), NAN);
  fill(stream, {tensor_of(out.data(), rows, cols), seed, stream_id, 0, 0, cols});
  return out;
}

const Fill kUniform = [](Stream& s, const InitPiece& p) { init_uniform(s, p, 0.25F); };
const Fill kNormal = [](Stream& s, const InitPiece& p) { init_normal(s, p, 0.5F); };

PhiloxCounter words_of(uint64_t index) {
  return philox({static_cast<uint32_t>(index / 4), static_cast<uint32_t>(index / 4 >> 32),
                 static_cast<uint32_t>(kStream), static_cast<uint32_t>(kStream >> 32)},
                {static_cast<uint32_t>(kSeed), static_cast<uint32_t>(kSeed >> 32)});
}

TEST(Init, UniformIsTheDocumentedFunction) {
  const auto values = whole(kUniform, 7, 13);
  for (uint64_t i = 0; i < values.size(); ++i) {
    const double u = static_cast<double>(words_of(i)[i % 4] >> 8) / 16777216.0;
    EXPECT_NEAR(values[i], 0.25 * (2 * u - 1), 1e-7) << i;
    EXPECT_GE(values[i], -0.25F);
    EXPECT_LT(values[i], 0.25F);
  }
}

TEST(Init, NormalIsTheDocumentedFunction) {
  const auto values = whole(kNormal, 5, 11);
  for (uint64_t i = 0; i < values.size(); ++i) {
    const PhiloxCounter words = words_of(i);
    const size_t even = i % 4 / 2 * 2;
    const double radius = std::sqrt(-2 * std::log((words[even] + 1.0) / 4294967296.0));
    const double angle = 2 * std::numbers::pi * words[even + 1] / 4294967296.0;
    EXPECT_NEAR(values[i], 0.5 * radius * (i % 2 == 0 ? std::cos(angle) : std::sin(angle)), 1e-6) << i;
  }
}

TEST(Init, EveryCutGivesTheSameValues) {
  constexpr int64_t kRows = 9;
  constexpr int64_t kCols = 14;
  for (const Fill& fill : {kUniform, kNormal}) {
    const auto all = whole(fill, kRows, kCols);
    for (int64_t row0 : {0, 1, 4, 8}) {
      for (int64_t col0 : {0, 1, 2, 3, 5, 13}) {
        const int64_t rows = kRows - row0;
        const int64_t cols = std::min<int64_t>(kCols - col0, 6);
        const int64_t ld = cols + 3;
        std::vector<float> piece(static_cast<size_t>(rows * ld), -9);
        Stream stream(Device{});
        fill(stream, {Tensor{piece.data(), DType::kF32, rows, cols, ld}, kSeed, kStream, row0, col0, kCols});
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < ld; ++c) {
            const float want = c < cols ? all[static_cast<size_t>((row0 + r) * kCols + col0 + c)] : -9.0F;
            ASSERT_EQ(piece[static_cast<size_t>(r * ld + c)], want) << row0 << " " << col0;
          }
        }
      }
    }
  }
}

TEST(Init, RowsBeyond32BitsHaveValuesOfTheirOwn) {
  // Row 2^33 of a tensor of three columns: the high half of the counter must count.
  std::vector<float> out(3);
  Stream stream(Device{});
  const int64_t row0 = int64_t{1} << 33;
  init_uniform(stream, {tensor_of(out.data(), 1, 3), kSeed, kStream, row0, 0, 3}, 1.0F);
  for (uint64_t c = 0; c < 3; ++c) {
    const uint64_t i = static_cast<uint64_t>(row0) * 3 + c;
    EXPECT_FLOAT_EQ(out[c], 2 * philox_uniform(words_of(i)[i % 4]) - 1);
  }
}

TEST(Init, SeedsStreamsAndThreads) {
  for (const Fill& fill : {kUniform, kNormal}) {
    const auto base = whole(fill, 300, 301);
    EXPECT_EQ(base, whole(fill, 300, 301, kSeed, kStream, 2));
    EXPECT_NE(base, whole(fill, 300, 301, kSeed + 1, kStream));
    EXPECT_NE(base, whole(fill, 300, 301, kSeed ^ (1ULL << 40), kStream));
    EXPECT_NE(base, whole(fill, 300, 301, kSeed, kStream + 1));
    EXPECT_NE(base, whole(fill, 300, 301, kSeed, kStream ^ (1ULL << 40)));
  }
}

TEST(Init, ValuesHaveTheMeanAndDeviationAskedFor) {
  for (const auto& [fill, deviation] : {std::pair{kUniform, 0.25 / std::sqrt(3.0)}, {kNormal, 0.5}}) {
    const auto values = whole(fill, 500, 401);
    const auto n = static_cast<double>(values.size());
    double mean = 0;
    double square = 0;
    double neighbours = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      mean += values[i];
      square += static_cast<double>(values[i]) * values[i];
      if (i > 0) neighbours += static_cast<double>(values[i]) * values[i - 1];
    }
    EXPECT_NEAR(mean / n, 0, 5 * deviation / std::sqrt(n));
    EXPECT_NEAR(std::sqrt(square / n) / deviation, 1, 0.01);
    EXPECT_NEAR(neighbours / n / deviation / deviation, 0, 5 / std::sqrt(n));
  }
}

TEST(Init, ATensorWithoutElementsIsAccepted) {
  Stream stream(Device{});
  EXPECT_NO_THROW(init_uniform(stream, {tensor_of(static_cast<float*>(nullptr), 0, 4), 1, 1, 0, 0, 4}, 1));
  EXPECT_NO_THROW(init_normal(stream, {tensor_of(static_cast<float*>(nullptr), 4, 0), 1, 1, 0, 0, 4}, 1));
}

}  // namespace
}  // namespace pesc
