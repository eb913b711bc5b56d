// The router on the CPU. The logits are one GEMM into scratch [T, E]; every token is then independent.
// The statistics are summed over the tokens in order, in double, so that they do not depend on the number of
// threads.
//
// A logit that is not a number ranks below every other, so that the choice stays defined (the weights do
// become NaN, which the trainer's check of the loss reports).
#include "ops/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "ops/core/threads.h"
#include "ops/core/vector_math.h"
#include "ops/cuda_ops.h"
#include "ops/gemm.h"
#include "ops/rmsnorm.h"
#include "ops/router_scratch.h"

namespace pesc {
namespace {

// Writes the k largest of `logits` in falling order; of equal ones the lower expert first.
void top_k(std::span<const float> logits, std::span<int32_t> chosen) {
  const auto rank_of = [&](int32_t e) {
    const float v = logits[static_cast<size_t>(e)];
    return std::isnan(v) ? -std::numeric_limits<float>::infinity() : v;
  };
  size_t held = 0;
  for (int32_t e = 0; e < static_cast<int32_t>(logits.size()); ++e) {
    const float rank = rank_of(e);
    if (held == chosen.size()) {
      if (!(rank > rank_of(chosen[held - 1]))) continue;
      --held;  // the last one falls out
    }
    size_t at = held++;
    for (; at > 0 && rank > rank_of(chosen[at - 1]); --at) chosen[at] = chosen[at - 1];
    chosen[at] = e;
  }
}

// out = softmax(in)
void softmax(std::span<const float> in, float* out) {
  const float top = *std::max_element(in.begin(), in.end());
  float total = 0;
#pragma omp simd
  for (size_t i = 0; i < in.size(); ++i) out[i] = fast_exp(in[i] - top);
  for (size_t i = 0; i < in.size(); ++i) total += out[i];
  const float inverse = 1.0F / total;
  for (size_t i = 0; i < in.size(); ++i) out[i] *= inverse;
}

void add_stats(const RouterForward& args) {
  const int64_t experts = args.probs.cols;
  std::vector<double> counts(static_cast<size_t>(experts));
  std::vector<double> probs(static_cast<size_t>(experts));
  for (int64_t t = 0; t < args.x.rows; ++t) {
    const int32_t* chosen = args.topk_indices.i32() + t * args.topk_indices.ld;
    for (int64_t j = 0; j < args.topk_indices.cols; ++j) counts[static_cast<size_t>(chosen[j])] += 1;
    const float* p = args.probs.f32() + t * args.probs.ld;
    for (int64_t e = 0; e < experts; ++e) probs[static_cast<size_t>(e)] += p[e];
  }
  float* out = args.stats.f32();
  for (int64_t e = 0; e < experts; ++e) {
    out[e] += static_cast<float>(counts[static_cast<size_t>(e)]);
    out[args.stats.ld + e] += static_cast<float>(probs[static_cast<size_t>(e)]);
  }
}

void route_tokens(const RouterForward& args, const Tensor& logits, int64_t begin, int64_t end) {
  const auto experts = static_cast<size_t>(logits.cols);
  const auto k = static_cast<size_t>(args.topk_indices.cols);
  std::vector<float> kept(k);
  for (int64_t t = begin; t < end; ++t) {
    const std::span<const float> row(logits.f32() + t * logits.ld, experts);
    const std::span<int32_t> chosen(args.topk_indices.i32() + t * args.topk_indices.ld, k);
    if (args.routing == Routing::kTopK) top_k(row, chosen);
    for (size_t j = 0; j < k; ++j) {
      kept[j] = row[static_cast<size_t>(chosen[j])];
    }
    softmax(kept, args.topk_weights.f32() + t * args.topk_weights.ld);
    softmax(row, args.probs.f32() + t * args.probs.ld);
  }
}

// dlogits of tokens [begin, end), written.
void logit_gradients(const RouterBackward& args, const Tensor& dlogits, int64_t begin, int64_t end) {
  const int64_t experts = dlogits.cols;
  const int64_t k = args.topk_indices.cols;
  const float* g = args.aux_loss_grad.f32();
  for (int64_t t = begin; t < end; ++t) {
    const float* p = args.probs.f32() + t * args.probs.ld;
    float* d = dlogits.f32() + t * dlogits.ld;
    float mean = 0;
    for (int64_t e = 0; e < experts; ++e) mean += p[e] * g[e];
    for (int64_t e = 0; e < experts; ++e) d[e] = p[e] * (g[e] - mean);
    const float* w = args.topk_weights.f32() + t * args.topk_weights.ld;
    const float* dw = args.dtopk_weights.f32() + t * args.dtopk_weights.ld;
    const int32_t* chosen = args.topk_indices.i32() + t * args.topk_indices.ld;
    float dot = 0;
    for (int64_t j = 0; j < k; ++j) dot += w[j] * dw[j];
    for (int64_t j = 0; j < k; ++j) d[chosen[j]] += w[j] * (dw[j] - dot);
  }
}

void check_choice(const Tensor& experts, int64_t count) {
  for (int64_t t = 0; t < experts.rows; ++t) {
    for (int64_t j = 0; j < experts.cols; ++j) {
      const int32_t e = experts.i32()[t * experts.ld + j];
      PESC_CHECK(0 <= e && e < count, "token ", t, " at expert ", e, " of ", count);
    }
  }
}

void check(const Tensor& x, const Tensor& weight, const Tensor& probs, const Tensor& experts,
           const Tensor& weights) {
  PESC_CHECK(x.cols == weight.cols, "x has ", x.cols, " columns, the router ", weight.cols);
  PESC_CHECK(probs.rows == x.rows && probs.cols == weight.rows, "probs ", probs.rows, "x", probs.cols);
  PESC_CHECK(experts.rows == x.rows && weights.rows == x.rows && weights.cols == experts.cols, "experts ",
             experts.rows, "x", experts.cols, ", weights ", weights.rows, "x", weights.cols);
  PESC_CHECK(1 <= experts.cols && experts.cols <= weight.rows, "top-", experts.cols, " of ", weight.rows);
}

}  // namespace

void router_forward(Stream& stream, const RouterForward& args, Arena& scratch) {
  if (stream.on_cuda()) return cuda_ops().router_forward(stream, args, scratch);
  check(args.x, args.weight, args.probs, args.topk_indices, args.topk_weights);
  PESC_CHECK(args.stats.rows == 2 && args.stats.cols == args.weight.rows, "stats ", args.stats.rows, "x",
             args.stats.cols);
  if (args.x.rows == 0) return;
  Arena::Scope scope(scratch);
  const Tensor logits = scratch.allocate(args.x.rows, args.weight.rows);
  linear_forward(stream, args.x, args.weight, logits);
  if (args.routing == Routing::kReplay) check_choice(args.topk_indices, args.weight.rows);
  parallel_for(stream, args.x.rows, row_grain(8 * logits.cols),
               [&](int64_t begin, int64_t end) { route_tokens(args, logits, begin, end); });
  add_stats(args);
}

void router_backward(Stream& stream, const RouterBackward& args, Arena& scratch) {
  if (stream.on_cuda()) return cuda_ops().router_backward(stream, args, scratch);
  check(args.x, args.weight, args.probs, args.topk_indices, args.topk_weights);
  PESC_CHECK(args.dtopk_weights.rows == args.x.rows && args.dtopk_weights.cols == args.topk_indices.cols,
             "dweights ", args.dtopk_weights.rows, "x", args.dtopk_weights.cols);
  PESC_CHECK(args.aux_loss_grad.size() == args.weight.rows, "aux loss gradient of ",
             args.aux_loss_grad.size());
  const Tensor& dlogits = args.dlogits;
  PESC_CHECK(dlogits.rows == args.x.rows && dlogits.cols == args.weight.rows, "dlogits ", dlogits.rows, "x",
             dlogits.cols);
  if (args.x.rows == 0) return;
  check_choice(args.topk_indices, args.weight.rows);
  parallel_for(stream, args.x.rows, row_grain(2 * dlogits.cols),
               [&](int64_t begin, int64_t end) { logit_gradients(args, dlogits, begin, end); });
  if (!args.rstd.present()) return linear_backward_weight(stream, dlogits, args.x, args.dweight);
  Arena::Scope scope(scratch);
  const Tensor x = scratch.allocate(args.x.rows, args.x.cols);
  rmsnorm_apply(stream, args.x, args.norm, args.rstd, x);
  linear_backward_weight(stream, dlogits, x, args.dweight);
}

void router_aux_loss(Stream& stream, const Tensor& stats, double tokens, int64_t top_k, double coef,
                     const Tensor& loss, const Tensor& aux_loss_grad) {
  if (stream.on_cuda())
    return cuda_ops().router_aux_loss(stream, stats, tokens, top_k, coef, loss, aux_loss_grad);
  PESC_CHECK(stats.rows == 2 && aux_loss_grad.size() == stats.cols && loss.size() == 1 && top_k >= 1,
             "stats ", stats.rows, "x", stats.cols, ", gradient of ", aux_loss_grad.size());
  const auto experts = static_cast<double>(stats.cols);
  const float* assigned = stats.f32();
  const float* prob = stats.f32() + stats.ld;
  double total = 0;
  for (int64_t e = 0; e < stats.cols; ++e) {
    const double share = tokens > 0 ? assigned[e] / (tokens * static_cast<double>(top_k)) : 0;
    const double mean_prob = tokens > 0 ? prob[e] / tokens : 0;
    total += share * mean_prob;
    aux_loss_grad.f32()[e] = tokens > 0 ? static_cast<float>(coef * experts * share / tokens) : 0.0F;
  }
  loss.f32()[0] = static_cast<float>(experts * total);
}

int64_t router_scratch_bytes(const Device& device, int64_t tokens, int64_t experts, int64_t hidden,
                             DType activations) {
  Arena arena = Arena::planning("router scratch");
  if (device.kind == DeviceKind::kCuda) {
    for (const bool backward : {false, true}) {
      const Arena::Scope scope(arena);
      (void)RouterScratch(arena, tokens, experts, hidden, activations, backward);
    }
    return arena.peak();
  }
  (void)arena.allocate(tokens, std::max(experts, hidden));
  return arena.peak();
}

}  // namespace pesc
