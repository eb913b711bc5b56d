#include "ops/nf4.h"

#include <algorithm>
#include <cmath>

#include "ops/core/check.h"
#include "ops/core/e4m3.h"
#include "ops/core/threads.h"
#include "ops/cuda_ops.h"

namespace pesc {
namespace {

// Rounded to float32 by itself: the compiler must not fuse it with an addition behind it.
float product(float a, float b) {
  const volatile float rounded = a * b;
  return rounded;
}

std::array<float, 256> make_dynamic_code() {
  std::array<float, 256> out{};
  size_t n = 0;
  double power = 1e-6;
  for (int bits = 0; bits < 7; ++bits, power *= 10) {
    // The borders of 2^bits parts of [0.1, 1], as torch.linspace rounds them; a code is the middle of a part.
    const int parts = 1 << bits;
    const float step = (1.0F - 0.1F) / static_cast<float>(parts);
    const auto border = [&](int i) {
      return i < (parts + 1) / 2 ? std::fma(step, static_cast<float>(i), 0.1F)
                                 : std::fma(-step, static_cast<float>(parts - i), 1.0F);
    };
    for (int i = 0; i < parts; ++i) {
      const float mean = (border(i) + border(i + 1)) / 2.0F;
      const float value = static_cast<float>(power) * mean;
      out[n++] = value;
      out[n++] = -value;
    }
  }
  out[n++] = 0.0F;
  out[n++] = 1.0F;
  std::sort(out.begin(), out.end());
  return out;
}

// Calls write(i, value) for columns [col, col + n) of a row.
template <class Write>
void dequantize_row(const Nf4Matrix& w, int64_t row, int64_t col, int64_t n, Write write) {
  const uint8_t* codes = w.codes.u8() + row * w.codes.ld;
  const bool plain = w.absmax.dtype == DType::kF32;
  const float* values_of = plain ? w.absmax.f32() + row * w.absmax.ld : nullptr;
  const uint8_t* absmax = plain ? nullptr : w.absmax.u8() + row * w.absmax.ld;
  const float* nested = plain ? nullptr : w.nested.f32() + row * w.nested.ld;
  const int64_t first = w.first.i32()[row * w.first.ld];
  const auto& values = nf4_code();
  const int64_t first_block = first / kNf4Block;
  for (int64_t i = 0; i < n;) {
    const int64_t at = first + col + i;
    const int64_t end = std::min(n, i + kNf4Block - at % kNf4Block);
    const int64_t block = at / kNf4Block - first_block;
    const float scale = plain
                            ? values_of[block]
                            : product(dynamic_code()[absmax[block]], nested[1 + at / kNf4Group]) + nested[0];
    for (; i < end; ++i) {
      const uint8_t two = codes[(col + i) / 2];
      write(i, values[(col + i) % 2 == 0 ? two >> 4 : two & 15] * scale);
    }
  }
}

void check_matrix(const Nf4Matrix& w) {
  const bool nested = w.absmax.dtype == DType::kF32 ||
                      (w.nested.rows == w.rows() && w.nested.cols == 1 + Nf4Matrix::groups(w.cols));
  PESC_CHECK(w.codes.cols == (w.cols + 1) / 2 && w.absmax.rows == w.rows() && nested &&
                 w.first.rows == w.rows() && w.absmax.cols == Nf4Matrix::blocks(w.cols),
             "NF4 ", w.rows(), "x", w.cols, " with ", w.absmax.rows, "x", w.absmax.cols, " absmaxes and ",
             w.nested.rows, "x", w.nested.cols, " nested ones");
}

}  // namespace

const std::array<float, 16>& nf4_code() {
  static constexpr std::array<float, 16> kCode = {
      -1.0F,
      -0.6961928009986877F,
      -0.5250730514526367F,
      -0.39491748809814453F,
      -0.28444138169288635F,
      -0.18477343022823334F,
      -0.09105003625154495F,
      0.0F,
      0.07958029955625534F,
      0.16093020141124725F,
      0.24611230194568634F,
      0.33791524171829224F,
      0.44070982933044434F,
      0.5626170039176941F,
      0.7229568362236023F,
      1.0F,
  };
  return kCode;
}

const std::array<float, 256>& dynamic_code() {
  static const std::array<float, 256> code = make_dynamic_code();
  return code;
}

Nf4Matrix Nf4Matrix::allocate(Arena& arena, int64_t rows, int64_t cols, Nf4Absmax absmax) {
  if (absmax == Nf4Absmax::kF32)
    return {cols,
            arena.allocate(rows, (cols + 1) / 2, DType::kU8),
            arena.allocate(rows, blocks(cols)),
            {},
            arena.allocate(rows, 1, DType::kI32)};
  return {cols, arena.allocate(rows, (cols + 1) / 2, DType::kU8),
          arena.allocate(rows, blocks(cols), DType::kU8), arena.allocate(rows, 1 + groups(cols)),
          arena.allocate(rows, 1, DType::kI32)};
}

Nf4Matrix Nf4Matrix::row_range(int64_t begin, int64_t end) const {
  return {cols, codes.row_range(begin, end), absmax.row_range(begin, end),
          nested.cols > 0 ? nested.row_range(begin, end) : nested, first.row_range(begin, end)};
}

int64_t Nf4Matrix::bytes() const {
  return codes.bytes() + absmax.bytes() + nested.bytes() + first.bytes();
}

void nf4_dequantize(Stream& stream, const Nf4Matrix& w, int64_t col, const Tensor& to) {
  check_matrix(w);
  PESC_CHECK(w.rows() == to.rows && col >= 0 && col + to.cols <= w.cols, "columns ", col, " and ", to.cols,
             " more of ", w.rows(), "x", w.cols, " to ", to.rows, " rows");
  if (stream.on_cuda()) return cuda_ops().nf4_dequantize(stream, w, col, to);
  float* out = to.f32();
  parallel_for(stream, to.rows, row_grain(to.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = out + r * to.ld;
      dequantize_row(w, r, col, to.cols, [row](int64_t i, float value) { row[i] = value; });
    }
  });
}

void nf4_to_fp8(Stream& stream, const Nf4Matrix& w, const Tensor& scales, const Tensor& codes) {
  check_matrix(w);
  PESC_CHECK(scales.rows == w.rows() && scales.cols == 1 && codes.rows == w.rows() && codes.cols >= w.cols,
             "NF4 ", w.rows(), "x", w.cols, " to ", codes.rows, "x", codes.cols, ", ", scales.rows,
             " scales");
  if (stream.on_cuda()) return cuda_ops().nf4_to_fp8(stream, w, scales, codes);
  uint8_t* out = codes.e4m3();
  const float* scale = scales.f32();
  parallel_for(stream, codes.rows, row_grain(codes.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      uint8_t* row = out + r * codes.ld;
      const float inverse = inverse_power_of_two(scale[r * scales.ld]);
      dequantize_row(w, r, 0, w.cols,
                     [row, inverse](int64_t i, float value) { row[i] = f32_to_e4m3(value * inverse); });
      std::fill(row + w.cols, row + codes.cols, uint8_t{0});
    }
  });
}

}  // namespace pesc
