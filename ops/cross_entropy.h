// Cross entropy over a vocabulary that is cut over ranks (Shoeybi et al., 2019, section 3): three local steps
// between which the caller reduces over the tp group. N supervised rows, V local vocabulary columns starting
// at `vocab_begin`.
//   1. cross_entropy_max    row maximum                        -> all-reduce max
//   2. cross_entropy_sums   sum of exp(l - max), target logit  -> all-reduce sum
//   3. cross_entropy_grad   loss and dlogits = (softmax - onehot) * scale, in place
#pragma once

#include <cstdint>

#include "ops/core/device.h"

namespace pesc {

// logits [N, V] -> max [1, N] written (-inf where V = 0).
void cross_entropy_max(Stream& stream, const Tensor& logits, const Tensor& max);
// targets [1, N] I32 global ids -> sums [2, N] written: row 0 sum_v exp(logit - max), row 1 the target's
// (logit - max) where this slice holds it, else 0.
void cross_entropy_sums(Stream& stream, const Tensor& logits, const Tensor& targets, int64_t vocab_begin,
                        const Tensor& max, const Tensor& sums);
// loss [1, N] F32 written (log(sum) - target, nats per row); logits are replaced by their gradient times
// `scale`.
void cross_entropy_grad(Stream& stream, const Tensor& logits, const Tensor& targets, int64_t vocab_begin,
                        const Tensor& max, const Tensor& sums, float scale, const Tensor& loss);
// The loss alone, from the reduced sums.
void cross_entropy_loss(Stream& stream, const Tensor& sums, const Tensor& loss);

}  // namespace pesc
