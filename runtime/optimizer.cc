#include "runtime/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "ops/adamw.h"
#include "ops/reduce.h"

namespace pesc {

double LearningRate::at(int64_t step) const {
  if (step < warmup) return lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (schedule == Schedule::kConstant || total <= warmup) return lr;
  const double t = std::min(1.0, static_cast<double>(step - warmup) / static_cast<double>(total - warmup));
  const double falling =
      schedule == Schedule::kLinear ? 1.0 - t : 0.5 * (1.0 + std::cos(std::numbers::pi * t));
  return lr * (min_ratio + (1.0 - min_ratio) * falling);
}

double reduce_gradients(Decoder& decoder, Communicator& world, const GradientReduction& reduction) {
  Stream& s = decoder.stream();
  const PhaseScope phase(s, Phase::kOptimizer);
  const Tensor sum = decoder.scalar();
  fill_zero(s, sum);
  for (int g = 0; g < kReplicaGroups; ++g) {
    const auto group = static_cast<ReplicaGroup>(g);
    const Tensor& flat = decoder.parameters().flat_grad(group);
    if (flat.cols == 0) continue;
    reduction.reduce(s, group, flat);
    if (reduction.replica(group) == 0) sum_squares(s, flat, sum);
  }
  world.all_reduce_sum(s, sum);
  double squares = 0;
  copy_to_host(s, sum, &squares);
  return std::sqrt(squares);
}

void optimizer_step(Decoder& decoder, const AdamWConfig& c, double lr, int64_t update, double norm) {
  const PhaseScope phase(decoder.stream(), Phase::kOptimizer);
  const double factor = c.clip_norm > 0 ? std::min(1.0, c.clip_norm / (norm + 1e-6)) : 1.0;
  for (const Parameter& p : decoder.parameters().all()) {
    if (!p.trained) continue;
    const int64_t n = p.value.size();
    const Tensor copy = p.copy.present() ? p.copy.reshaped(1, n) : Tensor{};
    adamw(decoder.stream(), {.param = p.value.reshaped(1, n),
                             .grad = p.grad.reshaped(1, n),
                             .exp_avg = p.exp_avg.reshaped(1, n),
                             .exp_avg_sq = p.exp_avg_sq.reshaped(1, n),
                             .copy = copy,
                             .lr = lr,
                             .beta1 = c.beta1,
                             .beta2 = c.beta2,
                             .eps = c.eps,
                             .weight_decay = c.weight_decay,
                             .step = update,
                             .grad_scale = static_cast<float>(factor)});
  }
}

}  // namespace pesc
