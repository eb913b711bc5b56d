// Cross entropy over a vocabulary that is split over the tp group (Shoeybi et al., 2019, section 3): three
// local steps, with the caller's all-reduces in between. N supervised rows, V local vocabulary columns
// starting at global id `vocab_begin`.
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
struct CrossEntropyGrad {
  Tensor logits;   // [N, V] replaced by their gradient times `scale`
  Tensor targets;  // [1, N] I32 global ids
  int64_t vocab_begin = 0;
  Tensor max, sums;  // [1, N], [2, N] reduced over the tp group
  float scale = 1;
  Tensor loss;  // [1, N] F32 written: log(sum) - target, nats per row
};
void cross_entropy_grad(Stream& stream, const CrossEntropyGrad& args);
// loss [1, N] F32 written, from the reduced sums, without a gradient.
void cross_entropy_loss(Stream& stream, const Tensor& sums, const Tensor& loss);

}  // namespace pesc
