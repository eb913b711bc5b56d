#include "model/dequantized_weights.h"

#include "ops/core/check.h"

namespace pesc {

DequantizedWeights::DequantizedWeights(WeightSource& base, const Stream& threads, FrozenFormat format,
                                       const std::vector<ShardSpec>& quantized)
    : base_(base), threads_(threads), format_(format) {
  for (const ShardSpec& tensor : quantized) quantized_.emplace(tensor.name, tensor);
}

void DequantizedWeights::read(const ShardSpec& piece, float* to) {
  const auto found = quantized_.find(piece.name);
  if (found == quantized_.end()) return base_.read(piece, to);
  PESC_CHECK(piece.cols == piece.global_cols, piece.name, ": columns from ", piece.col);
  if (name_ != piece.name) {
    name_.clear();
    tensor_.reset();  // the memory of one before that of the next
    const ReadRows read = [this, whole = found->second](int64_t row, int64_t rows, float* values) {
      ShardSpec slice = whole;
      slice.row = row;
      slice.rows = rows;
      base_.read(slice, values);
    };
    tensor_.emplace(threads_, found->second, read, format_);
    name_ = piece.name;
  }
  tensor_->dequantize(piece.row, piece.rows, to);
}

}  // namespace pesc
