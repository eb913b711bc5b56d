#include "ops/low_rank.h"

#include "ops/cuda_ops.h"
#include "ops/gemm.h"

namespace pesc {

void add_low_rank_term(Stream& stream, const LowRankTerm& term, const Tensor& out) {
  if (stream.on_cuda()) return cuda_ops().add_low_rank_term(stream, term, out);
  linear_backward_input(stream, term.left, term.right, out, 1.0F, 1.0F);
}

}  // namespace pesc
