// Where dense weights come from, seen from the model: named tensors of which a rank reads only its own slice.
#pragma once

#include <cstdint>
#include <string>

#include "ops/core/tensor.h"

namespace pesc {

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // The number of bytes that reads have taken from the source so far.
  [[nodiscard]] virtual int64_t bytes_read() const = 0;
  [[nodiscard]] virtual bool has(const std::string& name) const = 0;
  // Reads rows [row, row+rows) and columns [col, col+cols) of tensor `name` into host memory `to` as float32,
  // contiguous [rows, cols]. The tensor must have the global shape [global_rows, global_cols] (a vector is
  // [1, global_cols], whatever its rank in the file). Throws DataError naming the tensor, file and both
  // shapes otherwise.
  virtual void read(const std::string& name, int64_t global_rows, int64_t global_cols, int64_t row,
                    int64_t rows, int64_t col, int64_t cols, float* to) = 0;
};

}  // namespace pesc
