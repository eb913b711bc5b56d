// Quantises one tensor to NF4, as bitsandbytes' CPU backend does (quantize_4bit with compress_statistics,
// 0.50): the formats and letters of ops/nf4.h.
//
// The offset is a mean over the whole tensor, so its values are read twice: nf4_absmax sees all of them once;
// then Nf4Quantizer quantises the absmaxes, on the host; then nf4_quantize makes the codes of the pieces that
// this rank holds. The two operations on values run where the values are, with the same bytes on either device.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "ops/core/device.h"
#include "ops/nf4.h"
#include "ops/nf4_scales.h"

namespace pesc {

// Whole rows [row, row + R) of a tensor: values [R, K] F32, contiguous.
struct Nf4Rows {
  Tensor values;
  int64_t row = 0;
};
[[nodiscard]] inline int64_t nf4_tensor_blocks(int64_t rows, int64_t cols) {
  return Nf4Scales::blocks(rows * cols);
}
// absmax [1, nf4_tensor_blocks of the tensor] F32: raised to the largest magnitude of each block of these
// rows. It begins as 0. A block that is not finite gets infinity or NaN, and keeps it.
void nf4_absmax(Stream& stream, const Nf4Rows& rows, const Tensor& absmax);
// Writes to.codes: the codes of columns [col, col + to.cols) of these rows. absmax: of all rows.
void nf4_quantize(Stream& stream, const Nf4Rows& rows, int64_t col, const Tensor& absmax,
                  const Nf4Matrix& to);
// The largest value in [-1, 1] that gets code i, and not code i + 1.
[[nodiscard]] const std::array<float, 15>& nf4_borders();

class Nf4Quantizer {
 public:
  // Of a tensor [rows, cols]. Both must be positive.
  Nf4Quantizer(int64_t rows, int64_t cols);

  // What nf4_absmax found, in place of scan(). Returns the index of the first value of the first block that is
  // not finite, or -1.
  [[nodiscard]] int64_t set_absmax(std::vector<float> absmax);

  // values: contiguous [rows, cols], the next rows of the tensor. Returns the index of the first value that is
  // not finite, or -1.
  [[nodiscard]] int64_t scan(const Stream& host, int64_t rows, const float* values);
  // After the last scan(), or set_absmax(): quantises the absmaxes.
  void quantize_absmax(const Stream& host = Stream(Device{}));
  // Writes absmax, nested and first of `out`, which are in host memory: of columns [col, col + out.cols) of
  // rows [row, row + out.first.rows).
  void write_scales(const Stream& host, int64_t row, int64_t col, const Nf4Matrix& out) const;

  // values: contiguous whole rows [row, row + out.rows()) of the tensor. Writes columns [col, col + out.cols)
  // of them to `out`, which is in host memory.
  void quantize(const Stream& host, int64_t row, int64_t col, const float* values,
                const Nf4Matrix& out) const;

  // After quantize_absmax().
  [[nodiscard]] const Nf4Scales& scales() const { return scales_; }
  [[nodiscard]] float offset() const { return scales_.offset; }
  [[nodiscard]] const std::vector<uint8_t>& absmax_codes() const { return scales_.absmax_codes; }
  [[nodiscard]] const std::vector<float>& nested_absmax() const { return scales_.nested; }

 private:
  int64_t rows_, cols_;
  int64_t scanned_ = 0;  // rows
  std::vector<float> absmax_;
  Nf4Scales scales_;
};

}  // namespace pesc
