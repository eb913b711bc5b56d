#include "runtime/training_step.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "model/flops.h"
#include "runtime/clock.h"
#include "runtime/evaluation.h"
#include "runtime/optimizer.h"

namespace pesc {
namespace {

// The NaN or infinity that the fault puts into the gradient; 0 when it is not one of the gradient.
float in_gradient(InjectedFault p) {
  if (p == InjectedFault::kNanGradient) return std::numeric_limits<float>::quiet_NaN();
  return p == InjectedFault::kInfGradient ? std::numeric_limits<float>::infinity() : 0.0F;
}
double in_loss(InjectedFault p) {
  if (p == InjectedFault::kNanLoss) return std::numeric_limits<double>::quiet_NaN();
  return p == InjectedFault::kInfLoss ? std::numeric_limits<double>::infinity() : 0.0;
}

void poison_gradient(Decoder& decoder, float value) {
  for (const Parameter& p : decoder.parameters().all()) {
    if (!p.trainable || p.grad.size() == 0) continue;
    std::vector<float> values(static_cast<size_t>(p.grad.size()), value);
    copy_from_host(decoder.stream(), values.data(), p.grad);
    return;
  }
}

}  // namespace

bool is_finite(const StepMetrics& m) {
  return std::isfinite(m.loss) && std::isfinite(m.grad_norm);
}

struct TrainingStep::Counts {
  std::vector<double> expert;      // [layers * experts] assignments, of all ranks
  std::vector<double> tag_expert;  // [tags * experts] of this rank's slice
  std::vector<double> tag_tokens;  // [tags] of this dp rank's rows
};

// Sums over all ranks: tokens of each micro-batch, then supervised tokens, squared lengths, flags.
std::vector<double> TrainingStep::count_tokens(const StepInput& input) const {
  const size_t micros = input.micro_batches.size();
  std::vector<double> counts(micros + 3, 0.0);
  for (size_t m = 0; job_.mesh().tp_rank() == 0 && m < micros; ++m) {
    const HostBatch& b = input.micro_batches[m].host;
    counts[m] = static_cast<double>(b.size());
    for (const int32_t target : b.targets) counts[micros] += target >= 0 ? 1 : 0;
    for (size_t i = 0; i + 1 < b.starts.size(); ++i)
      counts[micros + 1] += std::pow(b.starts[i + 1] - b.starts[i], 2);
  }
  counts.back() = input.flag ? 1 : 0;
  return sum_over_ranks(job_.ranks->world(), counts);
}

// The host counts its own expert choices while the device works, and only then waits for the device's sums.
void TrainingStep::count_routing(const std::vector<int32_t>& tags, double layers_and_micros, Counts& counts,
                                 StepMetrics& m) {
  count_choices(job_, decoder_, tags, counts.tag_expert);
  for (const float b : decoder_.aux_losses()) m.aux_loss += static_cast<double>(b) / layers_and_micros;
  const std::vector<float> assigned = decoder_.expert_assignments();
  for (size_t i = 0; i < assigned.size(); ++i) counts.expert[i] += static_cast<double>(assigned[i]);
}

StepOutput TrainingStep::run(const StepInput& input, const BeforeUpdate& before_update) {
  const double start = now();
  const int64_t sent = job_.ranks->bytes_sent();
  const PescConfig& pesc = job_.config.pesc;
  Communicator& world = job_.ranks->world();
  const size_t micros = input.micro_batches.size();
  const bool moe = pesc.mode == TrainMode::kPesc;
  const auto layers_and_micros =
      static_cast<double>(job_.model.num_hidden_layers * static_cast<int64_t>(micros));

  // Every gradient is divided by the number of supervised tokens, so that must be known before the first
  // backward.
  const std::vector<double> tokens = count_tokens(input);
  StepOutput out;
  StepMetrics& m = out.metrics;
  m.supervised = tokens[micros];
  out.flagged = tokens.back() > 0;
  Counts counts;
  if (moe) {
    const auto experts = static_cast<size_t>(pesc.moe.num_experts);
    counts.expert.resize(static_cast<size_t>(job_.model.num_hidden_layers) * experts);
    counts.tag_expert.resize(tags_.size() * experts);
  }
  counts.tag_tokens.resize(tags_.size());
  decoder_.zero_gradients();
  // NaN and infinity stay so whatever is added.
  if (const float value = in_gradient(input.injected); value != 0) poison_gradient(decoder_, value);
  // Over MPI a reduction blocks until it is complete, so there is nothing to overlap.
  const bool behind =
      job_.config.parallel.overlap_comm == Overlap::kOn && job_.device.kind == DeviceKind::kCuda;
  GradientReducer gradients(decoder_, job_.ranks->reduction(), behind ? Reduce::kOverlapped : Reduce::kAtEnd);
  for (size_t i = 0; i < micros; ++i) {
    const LocalBatch& batch = input.micro_batches[i];
    m.tokens += tokens[i];
    decoder_.forward(batch.host, {.seed = job_.config.train.seed,
                                  .step = static_cast<uint32_t>(input.step),
                                  .router_replay = input.router_replay});
    decoder_.compute_aux_loss(static_cast<int64_t>(tokens[i]),
                              pesc.moe.router_aux_loss_coef / layers_and_micros);
    decoder_.loss(HeadMode::kLossAndGradient,
                  m.supervised > 0 ? static_cast<float>(1.0 / m.supervised) : 0.0F);
    decoder_.backward(i + 1 == micros ? gradients.overlapped() : Decoder::LayerDone{});
    if (moe) count_routing(batch.tags, layers_and_micros, counts, m);
    // The tp ranks of a dp rank hold the same rows: one of them counts.
    for (size_t t = 0; job_.mesh().tp_rank() == 0 && t < batch.tags.size(); ++t) {
      counts.tag_tokens[static_cast<size_t>(batch.tags[t])] += 1;
    }
    m.dispatch_rounds = std::max(m.dispatch_rounds, decoder_.dispatch_rounds());
  }
  m.grad_norm = gradients.finish(world);
  const double loss_sum = decoder_.take_loss_sum();  // the same on all tp ranks: one of them counts
  std::vector<double> sums{(job_.mesh().tp_rank() == 0 ? loss_sum : 0.0) + in_loss(input.injected)};
  sums.insert(sums.end(), counts.tag_expert.begin(), counts.tag_expert.end());
  sums.insert(sums.end(), counts.tag_tokens.begin(), counts.tag_tokens.end());
  sums = sum_over_ranks(world, sums);
  m.step = input.step + 1;
  m.loss = m.supervised > 0 ? sums[0] / m.supervised : 0.0;
  m.lr = input.lr;
  out.updated = !before_update || before_update(m) == Update::kApply;
  if (out.updated) optimizer_step(decoder_, job_.config.train.adamw, input.lr, input.step + 1, m.grad_norm);

  m.flops = training_flops(job_.model, pesc, {m.tokens, m.supervised, tokens[micros + 1]});
  if (const double share = decoder_.parameters().fp8_share(); share > 0)
    m.fp8_flops = share * frozen_linear_flops(job_.model, pesc, m.tokens);
  m.bytes_sent = job_.ranks->bytes_sent() - sent;
  add_shares(counts, sums, m);
  m.seconds = now() - start;
  return out;
}

void TrainingStep::add_shares(const Counts& counts, const std::vector<double>& sums,
                              StepMetrics& metrics) const {
  const bool moe = job_.config.pesc.mode == TrainMode::kPesc;
  const size_t experts = moe ? static_cast<size_t>(job_.config.pesc.moe.num_experts) : 0;
  for (size_t layer = 0; moe && layer < static_cast<size_t>(job_.model.num_hidden_layers); ++layer) {
    const auto begin = counts.expert.begin() + static_cast<int64_t>(layer * experts);
    metrics.expert_share.push_back(normalised({begin, begin + static_cast<int64_t>(experts)}));
  }
  for (size_t tag = 0; tag < tags_.size(); ++tag) {
    const double tokens = sums[1 + tags_.size() * experts + tag];
    if (tokens == 0) continue;
    metrics.tag_tokens[tags_[tag]] = tokens;
    if (!moe) continue;
    const auto begin = sums.begin() + 1 + static_cast<int64_t>(tag * experts);
    metrics.tag_share[tags_[tag]] = normalised({begin, begin + static_cast<int64_t>(experts)});
  }
}

}  // namespace pesc
