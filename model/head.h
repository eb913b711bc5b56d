// The language-model head and its loss, on supervised rows only and in chunks, so that all logits never exist
// at once. Vocabulary-parallel: each tp rank holds a slice of the head's rows and reduces maxima and sums
// over the tp group.
#pragma once

#include <vector>

#include "model/forward_context.h"
#include "model/parameters.h"

namespace pesc {

enum class HeadMode { kLoss, kLossAndGradient };

struct HeadResult {
  Tensor loss_sum;                           // [1, 1] F64, added to: nats over the supervised rows
  std::vector<float>* row_losses = nullptr;  // when given: appended, one per supervised row, in order
};

// x [P, H] is the normed output of all tokens. With kLossAndGradient, dx [P, H] is written with this rank's
// partial sum of grad_scale * d(loss_sum)/dx, and dhead is added to.
void head_loss(const ForwardContext& ctx, const ModelParameters& p, const Tensor& x, HeadMode mode,
               float grad_scale, const Tensor& dx, const HeadResult& result);

// Logits of rows [n, H] on the host, [n, vocab], the same on every tp rank. Collective over tp.
[[nodiscard]] std::vector<float> head_logits(const ForwardContext& ctx, const ModelParameters& p,
                                             const Tensor& rows);

}  // namespace pesc
