// A frozen weight that is quantised as a whole, on the host, in a form that no layout shows: codes row by row, and
// scales. What is kept of a tensor (runtime/weight_cache), and what its codes stand for (`pesc export`).
#pragma once

#include <cstdint>
#include <vector>

#include "model/frozen_linear.h"
#include "model/quantized_weights.h"
#include "ops/core/arena.h"
#include "ops/nf4_quantizer.h"
#include "ops/nf4_scales.h"
#include "parallel/shard_spec.h"

namespace pesc {

// Bytes of a row's codes: those of FP8; in NF4 two codes a byte, as in Nf4Matrix.
[[nodiscard]] int64_t quantized_row_bytes(FrozenFormat format, int64_t cols);

class QuantizedTensor {
 public:
  // `tensor`: its name and global shape, which must not be empty. Reads it once where the format is NF4. REQUIRES:
  // a quantised format. Throws DataError for values that are not finite, as write_quantized does.
  QuantizedTensor(const Stream& threads, ShardSpec tensor, ReadRows read, FrozenFormat format);

  // Rows [row, row + rows): their codes, contiguous, and a scale for each: that of FP8, which in NF4 is the one of the
  // dequantised values.
  void quantize(int64_t row, int64_t rows, uint8_t* codes, float* scales);
  // The values that the codes of these rows stand for, contiguous.
  void dequantize(int64_t row, int64_t rows, float* to);
  [[nodiscard]] const Nf4Scales& nf4_scales() const { return nf4_.front().scales(); }  // NF4 alone

 private:
  [[nodiscard]] bool is_nf4() const { return format_ == FrozenFormat::kNF4; }
  // Calls use(row, rows) for slices of these rows, whose values values_ then has.
  template <class Use>
  void for_slices(int64_t row, int64_t rows, Use use);
  void scan();
  // Of values_: to slice_ in NF4, else to the codes and scales.
  void quantize_fp8(int64_t row, int64_t rows, uint8_t* codes, float* scales);
  [[nodiscard]] Nf4Matrix quantize_nf4(int64_t row, int64_t rows);

  Stream host_;
  ShardSpec tensor_;
  ReadRows read_;
  FrozenFormat format_;
  int64_t most_rows_;
  std::vector<float> values_, dequantized_;
  std::vector<uint8_t> codes_;
  std::vector<float> scales_;
  std::vector<Nf4Quantizer> nf4_;  // one, in NF4
  std::vector<Arena> memory_;      // of slice_
  Nf4Matrix slice_;
};

// Writes rows of a tensor's codes and scales, as QuantizedTensor gives them, to the piece that a rank holds.
class QuantizedPieceWriter {
 public:
  // `nf4`: null unless the format is NF4. Everything outlives this object.
  QuantizedPieceWriter(Stream& stream, const ShardSpec& piece, const FrozenLinear& to, const Nf4Scales* nf4);
  // The rows that belong to the piece, of [row, row + rows). The memory may be reused when it returns.
  void write(int64_t row, int64_t rows, const uint8_t* codes, const float* scales);

 private:
  Stream& stream_;
  ShardSpec piece_;
  FrozenLinear to_;
  const Nf4Scales* nf4_;
  int64_t most_rows_;
  std::vector<uint8_t> codes_;
  std::vector<Arena> memory_;
  Nf4Matrix slice_;
};

}  // namespace pesc
