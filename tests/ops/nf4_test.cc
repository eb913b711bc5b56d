// NF4 on the CPU: codes against a search over all of them, the same bytes and values for every piece of a
// tensor, zeros, and what is not finite. tests/model/nf4_golden_test.cc has bitsandbytes' bytes.
#include "ops/nf4.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "ops/fp8.h"
#include "ops/nf4_quantizer.h"
#include "tests/ops/fp8_reference.h"
#include "tests/ops/reference.h"

namespace pesc {
namespace {

const Stream& host() {
  static const Stream stream(Device{.threads = 2});
  return stream;
}

Nf4Quantizer scanned(const HostMatrix& w) {
  Nf4Quantizer q(w.view.rows, w.view.cols);
  for (int64_t r = 0; r < w.view.rows; r += 7) {
    const int64_t n = std::min<int64_t>(7, w.view.rows - r);
    EXPECT_EQ(q.scan(host(), n, w.data.data() + r * w.view.cols), -1);
  }
  q.quantize_absmax();
  return q;
}

// Rows [row, row + rows) and columns [col, col + cols).
struct Piece {
  Arena memory;
  Nf4Matrix held;
  Piece(const Nf4Quantizer& q, const HostMatrix& w, int64_t row, int64_t rows, int64_t col, int64_t cols)
      : memory("piece", Device{}, 8192 + rows * (cols + 64)), held(Nf4Matrix::allocate(memory, rows, cols)) {
    q.quantize(host(), row, col, w.data.data() + row * w.view.cols, held);
  }
  [[nodiscard]] int code(int64_t r, int64_t c) const {
    const uint8_t two = held.codes.u8()[r * held.codes.ld + c / 2];
    return c % 2 == 0 ? two >> 4 : two & 15;
  }
  [[nodiscard]] HostMatrix values() const {
    HostMatrix out(held.rows(), held.cols);
    Stream stream(Device{.threads = 2});
    nf4_dequantize(stream, held, 0, out.view);
    return out;
  }
};

// 24000 values: two groups, so that pieces begin and end inside of blocks and of groups.
HostMatrix weight(int64_t rows, int64_t cols) {
  HostMatrix w = HostMatrix::normal(rows, cols, 1, 0, 0.02F);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) w(r, c) *= static_cast<float>(1 + r % 5);
  return w;
}

TEST(Nf4, TakesTheNearestCode) {
  const HostMatrix w = weight(40, 64);
  const Piece p(scanned(w), w, 0, 40, 0, 64);
  for (int64_t r = 0; r < 40; ++r) {
    double largest = 0;
    for (int64_t c = 0; c < 64; ++c) largest = std::max(largest, std::abs(static_cast<double>(w(r, c))));
    for (int64_t c = 0; c < 64; ++c) {
      double least = 2;
      for (const float code : nf4_code())
        least = std::min(least, std::abs(static_cast<double>(w(r, c)) / largest - static_cast<double>(code)));
      const double got = static_cast<double>(nf4_code()[static_cast<size_t>(p.code(r, c))]);
      EXPECT_NEAR(std::abs(static_cast<double>(w(r, c)) / largest - got), least, 1e-7) << r << ", " << c;
    }
  }
}

TEST(Nf4, APieceHasTheBytesOfTheWhole) {
  for (const int64_t cols : {128, 100, 33}) {
    const int64_t rows = 24000 / cols;
    const HostMatrix w = weight(rows, cols);
    const Nf4Quantizer q = scanned(w);
    const Piece whole(q, w, 0, rows, 0, cols);
    const HostMatrix all = whole.values();
    for (const int64_t parts : {2, 3, 4}) {
      for (int64_t i = 0; i < parts; ++i) {
        SCOPED_TRACE(str_cat(cols, " columns, part ", i, " of ", parts));
        const int64_t r0 = rows * i / parts, r1 = rows * (i + 1) / parts;
        const int64_t c0 = cols * i / parts, c1 = cols * (i + 1) / parts;
        const Piece some_rows(q, w, r0, r1 - r0, 0, cols);
        const Piece some_cols(q, w, 0, rows, c0, c1 - c0);
        const HostMatrix by_row = some_rows.values(), by_col = some_cols.values();
        for (int64_t r = r0; r < r1; ++r) {
          for (int64_t c = 0; c < cols; ++c) {
            ASSERT_EQ(some_rows.code(r - r0, c), whole.code(r, c));
            ASSERT_EQ(by_row(r - r0, c), all(r, c));
          }
        }
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = c0; c < c1; ++c) {
            ASSERT_EQ(some_cols.code(r, c - c0), whole.code(r, c));
            ASSERT_EQ(by_col(r, c - c0), all(r, c));
          }
        }
      }
    }
  }
}

// What a device does with slices of rows, and the scales from the host, are the bytes of the quantiser.
TEST(Nf4, SlicesOnADeviceGiveTheBytesOfTheWhole) {
  for (const int64_t cols : {128, 100, 33}) {
    SCOPED_TRACE(str_cat(cols, " columns"));
    const int64_t rows = 24000 / cols;
    HostMatrix w = weight(rows, cols);
    const Piece whole(scanned(w), w, 0, rows, 5, cols - 9);
    Stream stream(Device{.threads = 2});
    HostMatrix absmax(1, nf4_tensor_blocks(rows, cols));
    absmax.fill(0);
    const auto slice = [&](int64_t row) {
      return Nf4Rows{w.view.row_range(row, std::min(row + 17, rows)), row};
    };
    for (int64_t r = 0; r < rows; r += 17) nf4_absmax(stream, slice(r), absmax.view);
    Nf4Quantizer q(rows, cols);
    EXPECT_THROW(q.quantize_absmax(), InternalError);
    ASSERT_EQ(q.set_absmax(absmax.data), -1);
    q.quantize_absmax(stream);
    Piece got(q, w, 0, rows, 5, cols - 9);
    for (Tensor* t : {&got.held.codes, &got.held.absmax, &got.held.nested, &got.held.first})
      std::memset(t->data, 0x55, static_cast<size_t>(t->bytes()));
    for (int64_t r = 0; r < rows; r += 17) {
      const Nf4Matrix some = got.held.row_range(r, std::min(r + 17, rows));
      nf4_quantize(stream, slice(r), 5, absmax.view, some);
      q.write_scales(stream, r, 5, some);
    }
    for (const auto& [a, b] : {std::pair(got.held.codes, whole.held.codes),
                               {got.held.absmax, whole.held.absmax},
                               {got.held.nested, whole.held.nested},
                               {got.held.first, whole.held.first}})
      EXPECT_EQ(std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes())), 0);
  }
}

TEST(Nf4, ABlockThatIsNotFiniteKeepsItsAbsmaxAndIsFound) {
  Stream stream((Device()));
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    HostMatrix w = weight(6, 100), absmax(1, nf4_tensor_blocks(6, 100));
    absmax.fill(0);
    w(4, 31) = bad;
    for (int64_t r = 0; r < 6; ++r) nf4_absmax(stream, {w.view.row_range(r, r + 1), r}, absmax.view);
    Nf4Quantizer q(6, 100);
    EXPECT_EQ(q.set_absmax(absmax.data), 431 / 64 * 64);
  }
}

TEST(Nf4, AnyColumnsOfAPieceAreDequantised) {
  const HostMatrix w = weight(6, 333);
  const Nf4Quantizer q = scanned(w);
  const Piece p(q, w, 1, 4, 50, 201);
  const HostMatrix all = p.values();
  Stream stream((Device()));
  for (const auto& [col, n] : {std::pair<int64_t, int64_t>{0, 1}, {3, 64}, {77, 124}, {200, 1}, {5, 0}}) {
    HostMatrix some(4, n, 2);
    nf4_dequantize(stream, p.held, col, some.view);
    EXPECT_TRUE(some.gaps_untouched());
    for (int64_t r = 0; r < 4; ++r)
      for (int64_t c = 0; c < n; ++c) EXPECT_EQ(some(r, c), all(r, col + c));
  }
  HostMatrix beyond(4, 2);
  EXPECT_THROW(nf4_dequantize(stream, p.held, 200, beyond.view), InternalError);
}

TEST(Nf4, TurnsIntoFp8) {
  const HostMatrix w = weight(9, 70);
  const Piece p(scanned(w), w, 0, 9, 0, 70);
  const HostMatrix values = p.values();
  Stream stream((Device()));
  HostMatrix scales(9, 1);
  Codes want(9, 80, 0), got(9, 80, 0x55);
  fp8_quantize(stream, {.x = values.view, .codes = want.view, .scales = scales.view});
  nf4_to_fp8(stream, p.held, scales.view, got.view);
  EXPECT_EQ(got.bytes(), want.bytes());
}

TEST(Nf4, ZerosStayZeros) {
  HostMatrix w(3, 64);
  for (int64_t c = 0; c < 64; ++c) w(1, c) = static_cast<float>(c) - 31.5F;
  for (const bool all : {false, true}) {
    if (all) w.fill(0);
    const Piece p(scanned(w), w, 0, 3, 0, 64);
    const HostMatrix values = p.values();
    for (int64_t c = 0; c < 64; ++c) {
      EXPECT_EQ(p.code(0, c), 7);
      EXPECT_EQ(values(0, c), 0.0F);
      EXPECT_EQ(values(2, c), 0.0F);
      EXPECT_EQ(values(1, c) == 0.0F, all || p.code(1, c) == 7);
    }
  }
}

TEST(Nf4, NamesTheFirstValueThatIsNotFinite) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    HostMatrix w = weight(6, 100);
    w(4, 31) = bad;
    w(4, 90) = bad;
    Nf4Quantizer q(6, 100);
    EXPECT_EQ(q.scan(host(), 3, w.data.data()), -1);
    EXPECT_EQ(q.scan(host(), 3, w.data.data() + 300), 131);
  }
}

TEST(Nf4, RefusesToQuantiseWhatItHasNotSeen) {
  const HostMatrix w = weight(4, 64);
  Nf4Quantizer q(4, 64);
  EXPECT_EQ(q.scan(host(), 3, w.data.data()), -1);
  EXPECT_THROW(q.quantize_absmax(), InternalError);
  EXPECT_THROW(Piece(q, w, 0, 1, 0, 64), InternalError);
}

}  // namespace
}  // namespace pesc
