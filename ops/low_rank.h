// A matrix of low rank that is to be added to a gradient, given by its two factors. It is kept as factors
// until the operation that completes the gradient adds it (a fused epilogue); the product is never stored. T
// rows, R rank, C columns.
#pragma once

#include "ops/core/device.h"

namespace pesc {

// left right [T, C]. Optional: there is no term where `left` has no data.
struct LowRankTerm {
  Tensor left;   // [T, R] F32
  Tensor right;  // [R, C] F32

  [[nodiscard]] bool present() const { return left.present(); }
};
// out [T, C] += left right.
void add_low_rank_term(Stream& stream, const LowRankTerm& term, const Tensor& out);

}  // namespace pesc
