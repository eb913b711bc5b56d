// FP8 (E4M3) with one scale per row: x ~ diag(scales) codes. A scale is a power of two (ops/core/e4m3.h), so
// that a code is x / scale rounded once, and scales can be folded into other factors without rounding.
//
// T rows, K columns. A codes tensor may have more columns than x, up to a multiple of 16, which the GPU's FP8
// GEMM asks for (ops/fp8_gemm.h): those are written with 0. Any row stride.
#pragma once

#include "ops/core/device.h"

namespace pesc {

// The columns of FP8 operands, and their rows where these are summed over or are columns of the result, come
// in multiples of so many.
inline constexpr int64_t kFp8Multiple = 16;
[[nodiscard]] constexpr int64_t fp8_padded(int64_t n) {
  return (n + kFp8Multiple - 1) / kFp8Multiple * kFp8Multiple;
}

struct Fp8Quantize {
  Tensor x;                // [T, K] F32; on CUDA also BF16
  Tensor column_scales{};  // [1, K] F32, optional: x diag(column_scales), rounded to float32, is quantised.
  Tensor codes;            // [T, K or more] E4M3, written
  Tensor scales;           // [T, 1] F32, contiguous, written
};
// A second output of an operation that makes rows: their codes, the same bytes as those that fp8_quantize makes of
// the rows once they are rounded to their type. Optional: unused when `codes` has no data.
struct Fp8Rows {
  Tensor codes;            // [T, K or more] E4M3, written
  Tensor scales;           // [T, 1] F32, contiguous, written
  Tensor column_scales{};  // [1, K] F32, optional, as in Fp8Quantize

  [[nodiscard]] bool present() const { return codes.present(); }
  // Of some rows.
  [[nodiscard]] Fp8Rows rows(int64_t begin, int64_t end) const {
    if (!present()) return {};
    return {codes.row_range(begin, end), scales.row_range(begin, end), column_scales};
  }
};

// The scale of a row is that of its largest magnitude. A row that is not finite gets the scale NaN and codes 0:
// what is multiplied with it is NaN.
void fp8_quantize(Stream& stream, const Fp8Quantize& args);
inline void fp8_quantize_rows(Stream& stream, const Tensor& x, const Fp8Rows& to) {
  fp8_quantize(stream, Fp8Quantize{x, to.column_scales, to.codes, to.scales});
}

// to [T, K] F32, on CUDA also BF16, written: codes [T, K] times scales [T, 1].
void fp8_dequantize(Stream& stream, const Tensor& codes, const Tensor& scales, const Tensor& to);

// The side of the blocks of published folders that share a scale.
inline constexpr int64_t kFp8Block = 128;
// The largest number of blocks that `cols` columns touch, wherever in a block they begin.
[[nodiscard]] constexpr int64_t fp8_blocks(int64_t cols) {
  return (cols + kFp8Block - 2) / kFp8Block + 1;
}

struct Fp8Blocks {
  Tensor codes;       // [T, K] E4M3
  Tensor scales;      // [T, blocks] F32: of each row, those of the blocks that its columns touch
  int64_t first = 0;  // index of column 0 in the first of these blocks
};
// to [T, K] F32, on CUDA also BF16, written: each code times the scale of its block.
void fp8_dequantize_blocks(Stream& stream, const Fp8Blocks& from, const Tensor& to);

// to [K, T or more] written with the transpose of `from` [T, K]; both E4M3.
void fp8_transpose(Stream& stream, const Tensor& from, const Tensor& to);

}  // namespace pesc
