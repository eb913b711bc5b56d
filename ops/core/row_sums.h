// Rows added to rows that an index names, in rising order of the index's positions: the scatter of
// ops/reduce.h and the gradient of ops/embedding.h.
#pragma once

#include <cstdint>

#include "ops/core/device.h"

namespace pesc::cuda {

enum class Outside { kError, kSkip };  // what an index outside the rows of `out` is

// Row index[i] - first of out [R, C] += row i of in [n, C], in rising i; index [1, n] I32. Each sum is taken
// in float32 and rounded once into `out`. F32 or BF16 each.
void add_indexed_rows(Stream& stream, const Tensor& in, const Tensor& index, int64_t first, Outside outside,
                      const Tensor& out);

}  // namespace pesc::cuda
