// Initial values as pure functions of (seed, stream_id, element), the same on every layout. The local piece
// starts at (row0, col0) of the global tensor, which has `global_cols` columns; `stream_id` is a hash of the
// tensor's name.
#pragma once

#include <cstdint>

#include "ops/core/device.h"

namespace pesc {

struct InitPiece {
  Tensor out;  // [rows, cols] F32, on CUDA also BF16; written
  uint64_t seed = 0;
  uint64_t stream_id = 0;
  int64_t row0 = 0;
  int64_t col0 = 0;
  int64_t global_cols = 0;
};
void init_uniform(Stream& stream, const InitPiece& piece, float bound);  // uniform in [-bound, bound)
void init_normal(Stream& stream, const InitPiece& piece, float std);     // Box-Muller, mean 0

}  // namespace pesc
