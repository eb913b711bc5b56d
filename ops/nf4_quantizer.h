// Quantises one tensor to NF4 on the host, as bitsandbytes' CPU backend does (quantize_4bit with
// compress_statistics, 0.50): the formats and letters of ops/nf4.h.
//
// The offset is a mean over the whole tensor, so its values are read twice: scan() sees all of them once, in
// order; then quantize() makes the pieces that this rank holds.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/core/device.h"
#include "ops/nf4.h"
#include "ops/nf4_scales.h"

namespace pesc {

class Nf4Quantizer {
 public:
  // Of a tensor [rows, cols]. Both must be positive.
  Nf4Quantizer(int64_t rows, int64_t cols);

  // values: contiguous [rows, cols], the next rows of the tensor. Returns the index of the first value that is
  // not finite, or -1.
  [[nodiscard]] int64_t scan(const Stream& host, int64_t rows, const float* values);
  // After the last scan(): quantises the absmaxes.
  void quantize_absmax();

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
  void quantize_row(int64_t row, int64_t col, const float* values, const Nf4Matrix& out, int64_t to) const;

  int64_t rows_, cols_;
  int64_t scanned_ = 0;  // rows
  std::vector<float> absmax_;
  Nf4Scales scales_;
};

}  // namespace pesc
