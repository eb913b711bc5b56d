// AdamW on the CPU. The scalars of a step are computed in double and rounded to float once; each element is
// independent, so results do not depend on the number of threads.
#include "ops/adamw.h"

#include <cmath>

#include "ops/core/threads.h"
#include "ops/cuda_ops.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

// By value: behind a reference the scalars might alias the stores, and the loop would not vectorise.
void update(AdamWScalars s, float* p, const float* grad, float* m, float* v, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * s.grad_scale;
    const float avg = s.beta1 * m[i] + s.rest1 * g;
    const float avg_sq = s.beta2 * v[i] + s.rest2 * g * g;
    m[i] = avg;
    v[i] = avg_sq;
    p[i] = s.decay * p[i] - s.rate * avg / (std::sqrt(avg_sq) * s.inverse_root2 + s.eps);
  }
}

void update(Stream& stream, const AdamW& args) {
  const int64_t n = args.param.size();
  for (const Tensor* t : {&args.param, &args.grad, &args.exp_avg, &args.exp_avg_sq})
    PESC_CHECK(t->size() == n && t->contiguous(), "flat buffers of one size; got ", t->size(), " and ", n);
  const AdamWScalars scalars = adamw_scalars(args);
  float* p = args.param.f32();
  const float* grad = args.grad.f32();
  float* m = args.exp_avg.f32();
  float* v = args.exp_avg_sq.f32();
  constexpr int64_t kGrain = 16384;
  parallel_for(stream, n, kGrain, [=](int64_t begin, int64_t end) {
    update(scalars, p + begin, grad + begin, m + begin, v + begin, end - begin);
  });
  if (args.compute_weight.present())
    cast(stream, args.param.reshaped(args.compute_weight.rows, args.compute_weight.cols),
         args.compute_weight);
}

}  // namespace

AdamWScalars adamw_scalars(const AdamW& update) {
  PESC_CHECK(update.step >= 1, "step ", update.step);
  const auto step = static_cast<double>(update.step);
  const double correction1 = 1.0 - std::pow(update.beta1, step);
  const double correction2 = 1.0 - std::pow(update.beta2, step);
  return {
      .decay = static_cast<float>(1.0 - update.lr * update.weight_decay),
      .beta1 = static_cast<float>(update.beta1),
      .rest1 = static_cast<float>(1.0 - update.beta1),
      .beta2 = static_cast<float>(update.beta2),
      .rest2 = static_cast<float>(1.0 - update.beta2),
      .rate = static_cast<float>(update.lr / correction1),
      .inverse_root2 = static_cast<float>(1.0 / std::sqrt(correction2)),
      .eps = static_cast<float>(update.eps),
      .grad_scale = update.grad_scale,
  };
}

void adamw(Stream& stream, std::span<const AdamW> updates) {
  if (stream.on_cuda()) return cuda_ops().adamw(stream, updates);
  for (const AdamW& one : updates) update(stream, one);
}

}  // namespace pesc
