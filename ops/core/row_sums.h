// Scatter-add of rows by index, in a fixed order: for scatter_add_rows (ops/reduce.h) and the gradient of the
// embedding (ops/embedding.h).
#pragma once

#include <cstdint>

#include "ops/core/device.h"

namespace pesc::cuda {

enum class Outside { kError, kSkip };  // an index outside the rows of `out`: a trap, or skipped

// Row index[i] - first of out [R, C] += row i of in [n, C], in rising i; index [1, n] I32. Each sum is taken
// in float32 and rounded once into `out`. F32 or BF16 each.
void add_indexed_rows(Stream& stream, const Tensor& in, const Tensor& index, int64_t first, Outside outside,
                      const Tensor& out);

}  // namespace pesc::cuda
