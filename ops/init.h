// Initial values as pure functions of (seed, stream, element): the same on every layout. `row0`, `col0` place
// the local piece in the global tensor of `global_cols` columns; `stream_id` tells tensors apart (a hash of
// the name).
#pragma once

#include <cstdint>

#include "ops/core/device.h"

namespace pesc {

struct InitPiece {
  Tensor out;  // [rows, cols] F32, written
  uint64_t seed = 0;
  uint64_t stream_id = 0;
  int64_t row0 = 0;
  int64_t col0 = 0;
  int64_t global_cols = 0;
};
void init_uniform(Stream& stream, const InitPiece& piece, float bound);  // uniform in [-bound, bound)
void init_normal(Stream& stream, const InitPiece& piece, float std);     // Box-Muller, mean 0

}  // namespace pesc
