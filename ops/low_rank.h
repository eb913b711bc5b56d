// A low-rank matrix that is to be added to a gradient, given by its two factors. The op that completes the
// gradient adds it (a fused epilogue); the matrix itself is never stored. T rows, R rank, C columns.
#pragma once

#include "ops/core/device.h"

namespace pesc {

// The matrix left right [T, C]. Optional: unused when `left` has no data.
struct LowRankTerm {
  Tensor left;   // [T, R] F32
  Tensor right;  // [R, C] F32

  [[nodiscard]] bool present() const { return left.present(); }
};
// out [T, C] += left right.
void add_low_rank_term(Stream& stream, const LowRankTerm& term, const Tensor& out);

}  // namespace pesc
