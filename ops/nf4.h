// NF4: 4-bit codes of a table of 16 normal quantiles (QLoRA: Dettmers et al., 2023, arXiv 2305.14314), with
// double quantisation, as bitsandbytes writes it. A tensor is flattened and cut into blocks of 64 values; a
// block has its largest magnitude (absmax). Of the absmaxes their mean (offset) is taken away, and runs of 256
// of them (a group of 16384 values) are quantised to 8 bits with a nested absmax for each run:
//
//   absmax = dynamic_code[absmax_code] * nested_absmax + offset;   w = nf4_code[code] * absmax
//
// each operation rounded to float32. Without double quantisation the absmaxes are float32 values themselves,
// which published folders may have. A rank holds columns [col0, col0 + cols) of some rows of the tensor. Blocks
// run over the flattened tensor, so a block or a group may begin in the middle of these rows: each row therefore
// has the absmaxes that its columns need, and the index of its first value. On every layout a value has the same
// code, the same absmax and the same dequantised bits.
//
// R rows, K columns.
#pragma once

#include <array>
#include <cstdint>

#include "ops/core/arena.h"
#include "ops/core/device.h"

namespace pesc {

inline constexpr int64_t kNf4Block = 64;
inline constexpr int64_t kNf4Group = 256 * kNf4Block;  // values that share a nested absmax

// The 16 values of the codes, rising.
[[nodiscard]] const std::array<float, 16>& nf4_code();
// bitsandbytes' dynamic_map of 8 bits with a sign (Dettmers et al., 2022, arXiv 2110.02861), rising.
[[nodiscard]] const std::array<float, 256>& dynamic_code();

// How absmaxes are held: quantised to 8 bits, or as they are.
enum class Nf4Absmax { kQuantized, kF32 };

struct Nf4Matrix {
  int64_t cols = 0;
  Tensor codes;   // [R, (K + 1) / 2] U8: two codes a byte, the first in the high half
  Tensor absmax;  // [R, blocks] U8 or F32, of the blocks that the row touches
  // [R, 1 + groups] F32: the offset, and the nested absmaxes of the groups that the row touches; absent where
  // absmaxes are F32
  Tensor nested;
  Tensor first;  // [R, 1] I32: index of the row's first value within its group

  [[nodiscard]] static Nf4Matrix allocate(Arena& arena, int64_t rows, int64_t cols,
                                          Nf4Absmax absmax = Nf4Absmax::kQuantized);
  // The largest numbers of blocks and of groups that `cols` values in a row touch.
  [[nodiscard]] static int64_t blocks(int64_t cols) { return (cols + kNf4Block - 2) / kNf4Block + 1; }
  [[nodiscard]] static int64_t groups(int64_t cols) { return (cols + kNf4Group - 2) / kNf4Group + 1; }

  [[nodiscard]] bool present() const { return cols > 0; }
  [[nodiscard]] int64_t rows() const { return codes.rows; }
  [[nodiscard]] Nf4Matrix row_range(int64_t begin, int64_t end) const;
  [[nodiscard]] int64_t bytes() const;
};

// to [R, n] written with columns [col, col + n) of w, as float32; on CUDA also BF16, rounded once.
void nf4_dequantize(Stream& stream, const Nf4Matrix& w, int64_t col, const Tensor& to);
// codes [R, K or more] E4M3 written with w / scales [R, 1] rounded once; columns beyond K with 0. The scales are
// powers of two.
void nf4_to_fp8(Stream& stream, const Nf4Matrix& w, const Tensor& scales, const Tensor& codes);

}  // namespace pesc
