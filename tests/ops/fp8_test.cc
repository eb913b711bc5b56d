// FP8 on the CPU: the conversions bit for bit against a search in float64 over all codes, rows, transposes and
// the plain GEMM.
#include "ops/fp8.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "ops/core/e4m3.h"
#include "ops/fp8_gemm.h"
#include "ops/rmsnorm.h"
#include "ops/swiglu.h"
#include "tests/ops/fp8_reference.h"
#include "tests/ops/reference.h"

namespace pesc {
namespace {

TEST(E4m3, ValuesAreThoseOfTheFormat) {
  for (int code = 0; code < 256; ++code) {
    const float got = e4m3_to_f32(static_cast<uint8_t>(code));
    if ((code & 0x7F) == 0x7F) {
      EXPECT_TRUE(std::isnan(got)) << code;
      continue;
    }
    EXPECT_EQ(static_cast<double>(got), e4m3_value(code)) << code;
    EXPECT_EQ(std::signbit(got), code >= 128) << code;
    EXPECT_EQ(f32_to_e4m3(got), code);
  }
}

TEST(E4m3, RoundsToTheNearestAndTiesToEven) {
  const auto check = [](float v) { ASSERT_EQ(f32_to_e4m3(v), nearest_e4m3(v)) << std::hexfloat << v; };
  for (int code = 0; code < 0x7E; ++code) {
    const auto tie = static_cast<float>((e4m3_value(code) + e4m3_value(code + 1)) / 2);
    for (const float v : {tie, std::nextafter(tie, 0.0F), std::nextafter(tie, 1e9F)}) {
      check(v);
      check(-v);
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random());
    const uint32_t near_range = (bits & 0x807FFFFFU) | (112 + bits % 26) << 23;  // 2^-15 to 2^10
    for (const uint32_t b : {bits, near_range})
      if (std::isfinite(std::bit_cast<float>(b))) check(std::bit_cast<float>(b));
  }
  EXPECT_EQ(f32_to_e4m3(std::numeric_limits<float>::infinity()), 0x7E);
  EXPECT_EQ(f32_to_e4m3(std::numeric_limits<float>::quiet_NaN()), 0x7F);
}

TEST(E4m3, TheScaleIsTheLeastPowerOfTwoThatFits) {
  std::mt19937 random(2);
  for (int i = 0; i < 10000; ++i) {
    const float largest = std::bit_cast<float>(static_cast<uint32_t>(random()) & 0x7FFFFFFFU);
    if (!std::isfinite(largest) || largest == 0) continue;
    ASSERT_EQ(static_cast<double>(e4m3_scale(largest)), reference_scale(largest)) << largest;
    ASSERT_EQ(inverse_power_of_two(e4m3_scale(largest)) * e4m3_scale(largest), 1.0F) << largest;
  }
  EXPECT_EQ(e4m3_scale(448.0F), 1.0F);
  EXPECT_EQ(e4m3_scale(std::nextafter(448.0F, 1e9F)), 2.0F);
  EXPECT_EQ(e4m3_scale(0.0F), 1.0F);
  EXPECT_EQ(e4m3_scale(1e-45F), 0x1p-126F);
  EXPECT_TRUE(std::isnan(e4m3_scale(std::numeric_limits<float>::infinity())));
  EXPECT_TRUE(std::isnan(e4m3_scale(std::numeric_limits<float>::quiet_NaN())));
}

struct Shape {
  int64_t rows, cols, gap, more;
  int threads;
};
const std::vector<Shape> kShapes = {{0, 5, 0, 0, 1}, {1, 1, 0, 0, 1}, {3, 17, 2, 15, 1}, {65, 300, 0, 4, 2}};

TEST(Fp8, QuantisesRowsBitForBit) {
  for (const Shape& s : kShapes) {
    for (const bool factors : {false, true}) {
      SCOPED_TRACE(str_cat(s.rows, "x", s.cols, factors ? " with" : " without", " column scales"));
      HostMatrix x = uneven_rows(s.rows, s.cols, 3, s.gap);
      HostMatrix scale(1, s.cols);
      for (int64_t i = 0; i < s.cols; ++i) scale(0, i) = std::ldexp(1.0F, static_cast<int>(i % 9) - 4);
      Stream stream(Device{.threads = s.threads});
      Codes got(s.rows, s.cols + s.more, 0x55);
      HostMatrix scales(s.rows, 1);
      fp8_quantize(stream, {.x = x.view,
                            .column_scales = factors ? scale.view : Tensor{},
                            .codes = got.view,
                            .scales = scales.view});
      for (int64_t r = 0; r < s.rows; ++r) {
        std::vector<float> row;
        for (int64_t i = 0; i < s.cols; ++i) row.push_back(factors ? x(r, i) * scale(0, i) : x(r, i));
        const auto [codes, want] = reference_row(row);
        EXPECT_EQ(static_cast<double>(scales(r, 0)), want) << r;
        for (int64_t i = 0; i < s.cols + s.more; ++i)
          ASSERT_EQ(got(r, i), i < s.cols ? codes[static_cast<size_t>(i)] : 0) << r << ", " << i;
      }
    }
  }
}

TEST(Fp8, RowsOfZerosAreOrdinaryAndRowsThatAreNotFiniteGiveNan) {
  HostMatrix x(4, 3);
  x(1, 2) = -0.0F;
  x(2, 0) = std::numeric_limits<float>::infinity();
  x(3, 1) = std::numeric_limits<float>::quiet_NaN();
  Stream stream((Device()));
  Codes codes(4, 3, 0x55);
  HostMatrix scales(4, 1), back(4, 3);
  fp8_quantize(stream, {.x = x.view, .codes = codes.view, .scales = scales.view});
  fp8_dequantize(stream, codes.view, scales.view, back.view);
  for (int64_t r = 0; r < 4; ++r) {
    EXPECT_EQ(std::isnan(scales(r, 0)), r >= 2);
    for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(std::isnan(back(r, i)), r >= 2);
    if (r < 2) {
      EXPECT_EQ(scales(r, 0), 1.0F);
    }
  }
}

TEST(Fp8, DequantisesAndTransposes) {
  for (const Shape& s : kShapes) {
    const HostMatrix x = uneven_rows(s.rows, s.cols, 4);
    Stream stream(Device{.threads = s.threads});
    Codes codes(s.rows, s.cols, 0), turned(s.cols, s.rows + s.more, 0x55);
    HostMatrix scales(s.rows, 1), back(s.rows, s.cols, s.gap);
    fp8_quantize(stream, {.x = x.view, .codes = codes.view, .scales = scales.view});
    fp8_dequantize(stream, codes.view, scales.view, back.view);
    fp8_transpose(stream, codes.view, turned.view);
    EXPECT_TRUE(back.gaps_untouched());
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t i = 0; i < s.cols; ++i) {
        EXPECT_EQ(static_cast<double>(back(r, i)),
                  e4m3_value(codes(r, i)) * static_cast<double>(scales(r, 0)));
        EXPECT_EQ(turned(i, r), codes(r, i));
      }
    }
    for (int64_t i = 0; i < s.cols; ++i)
      for (int64_t r = s.rows; r < s.rows + s.more; ++r) EXPECT_EQ(turned(i, r), 0);
  }
}

// Operations that write codes with their rows write what fp8_quantize makes of these, also where the rows themselves
// are not asked for.
TEST(Fp8, OperationsWriteTheCodesOfTheirRows) {
  Stream stream(Device{.threads = 2});
  constexpr int64_t kRows = 7, kCols = 19, kMore = 13;
  const HostMatrix x = HostMatrix::normal(kRows, 2 * kCols, 1), dh = HostMatrix::normal(kRows, kCols, 2);
  HostMatrix weight = HostMatrix::normal(1, kCols, 3), factors(1, 2 * kCols), rstd(1, kRows);
  for (int64_t i = 0; i < 2 * kCols; ++i) factors(0, i) = std::ldexp(1.0F, static_cast<int>(i % 5) - 2);
  const auto expect = [&](const HostMatrix& rows, const Fp8Rows& got, const Tensor& column_scales) {
    Codes want(kRows, got.codes.cols, 0x55);
    HostMatrix scales(kRows, 1);
    fp8_quantize(stream,
                 {.x = rows.view, .column_scales = column_scales, .codes = want.view, .scales = scales.view});
    for (int64_t r = 0; r < kRows; ++r) {
      EXPECT_EQ(got.scales.f32()[r], scales(r, 0));
      for (int64_t i = 0; i < got.codes.cols; ++i)
        EXPECT_EQ(got.codes.e4m3()[r * got.codes.ld + i], want(r, i));
    }
  };
  Arena nothing("scratch", Device{}, 1);
  HostMatrix h(kRows, kCols), copy(kRows, kCols), dx(kRows, 2 * kCols), scales(kRows, 1);
  const Codes codes(kRows, kCols + kMore, 0x55), dcodes(kRows, 2 * kCols + kMore, 0x55),
      alone(kRows, kCols + kMore, 0x55);
  swiglu_forward(stream, x.view, h.view, {}, {codes.view, scales.view});
  expect(h, {codes.view, scales.view}, {});
  swiglu_forward(stream, x.view, {}, {{}, copy.view}, {alone.view, scales.view});
  expect(h, {alone.view, scales.view}, {});
  EXPECT_EQ(copy.values(), h.values());
  swiglu_backward(stream, {dh.view, x.view, dx.view, {}, {dcodes.view, scales.view, factors.view}}, nothing);
  expect(dx, {dcodes.view, scales.view}, factors.view);

  rmsnorm_forward(stream,
                  {dh.view, {}, {}, weight.view, 1e-5F, h.view, rstd.view, {}, {codes.view, scales.view}});
  expect(h, {codes.view, scales.view}, {});
  rmsnorm_forward(
      stream,
      {dh.view, {}, {}, weight.view, 1e-5F, {}, rstd.view, {{}, copy.view}, {alone.view, scales.view}});
  expect(h, {alone.view, scales.view}, {});
  EXPECT_EQ(copy.values(), h.values());
}

TEST(Fp8, RefusesOtherShapes) {
  Stream stream((Device()));
  HostMatrix x(3, 4), scales(3, 1), few(2, 1);
  Codes codes(3, 4, 0), narrow(3, 3, 0);
  EXPECT_THROW(fp8_quantize(stream, {.x = x.view, .codes = narrow.view, .scales = scales.view}),
               InternalError);
  EXPECT_THROW(fp8_quantize(stream, {.x = x.view, .codes = codes.view, .scales = few.view}), InternalError);
  EXPECT_THROW(fp8_dequantize(stream, narrow.view, scales.view, x.view), InternalError);
  EXPECT_THROW(fp8_transpose(stream, codes.view, narrow.view), InternalError);
}

TEST(Fp8Gemm, IsTheProductOfTheDequantisedOperands) {
  constexpr int64_t kM = 9, kN = 21, kK = 35;
  Stream stream(Device{.threads = 2});
  Arena scratch("scratch", Device{}, 1);
  const HostMatrix a = uneven_rows(kM, kK, 5), b = uneven_rows(kN, kK, 6);
  Codes qa(kM, kK, 0), qb(kN, kK, 0);
  HostMatrix sa(kM, 1), sb(kN, 1), da(kM, kK), db(kN, kK);
  for (const auto& [x, q, s, d] : {std::tuple(&a, &qa, &sa, &da), std::tuple(&b, &qb, &sb, &db)}) {
    fp8_quantize(stream, {.x = x->view, .codes = q->view, .scales = s->view});
    fp8_dequantize(stream, q->view, s->view, d->view);
  }
  for (const float beta : {0.0F, 1.0F}) {
    HostMatrix c = HostMatrix::normal(kM, kN, 7, 3);
    Matrix64 want(kM, kN);
    for (int64_t i = 0; i < kM; ++i) {
      for (int64_t j = 0; j < kN; ++j) {
        if (beta != 0.0F) want(i, j) = static_cast<double>(c(i, j));
        for (int64_t l = 0; l < kK; ++l)
          want(i, j) += static_cast<double>(da(i, l)) * static_cast<double>(db(j, l));
      }
    }
    fp8_gemm(
        stream,
        {.a = qa.view, .a_scales = sa.view, .b = qb.view, .b_scales = sb.view, .c = c.view, .beta = beta},
        scratch);
    EXPECT_LT(relative_error(c, want), 1e-6);
    EXPECT_TRUE(c.gaps_untouched());
  }
}

TEST(Fp8, DequantisesBlocksFromAnyColumnOfOne) {
  Stream stream(Device{.threads = 2});
  for (const int64_t first : {0, 1, 100, 127}) {
    const HostMatrix x = uneven_rows(9, 300, 4);
    Codes codes(9, 300, 0);
    HostMatrix ones(9, 1), scales(9, fp8_blocks(300)), back(9, 300, 5);
    fp8_quantize(stream, {.x = x.view, .codes = codes.view, .scales = ones.view});
    for (size_t i = 0; i < scales.data.size(); ++i) scales.data[i] = 0.1F * static_cast<float>(i + 1);
    fp8_dequantize_blocks(stream, {codes.view, scales.view, first}, back.view);
    EXPECT_TRUE(back.gaps_untouched());
    for (int64_t r = 0; r < 9; ++r)
      for (int64_t i = 0; i < 300; ++i)
        ASSERT_EQ(back(r, i), static_cast<float>(e4m3_value(codes.view.e4m3()[r * codes.view.ld + i])) *
                                  scales(r, (first + i) / 128));
    EXPECT_THROW(fp8_dequantize_blocks(stream, {codes.view, scales.view, 128 * 4 - 299}, back.view),
                 InternalError);
  }
}

}  // namespace
}  // namespace pesc
