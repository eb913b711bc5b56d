#include "runtime/optimizer.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "ops/adamw.h"
#include "ops/reduce.h"

namespace pesc {

namespace {

// The number of layers in a bucket. All layers have one size, the same on all ranks.
int64_t layers_of(int64_t bucket_bytes, const ModelParameters& p) {
  int64_t bytes = 0;
  for (int g = 0; g < kReplicaGroups; ++g) bytes += p.layer_grads(static_cast<ReplicaGroup>(g), 0, 1).bytes();
  bytes = std::max<int64_t>(bytes, 1);
  return std::max<int64_t>(1, (bucket_bytes + bytes - 1) / bytes);
}

}  // namespace

GradientReducer::GradientReducer(Decoder& decoder, const GradientReduction& reduction, Reduce when,
                                 int64_t bucket_bytes)
    : decoder_(decoder),
      reduction_(reduction),
      when_(when),
      bucket_layers_(layers_of(bucket_bytes, decoder.parameters())),
      left_(decoder.model().num_hidden_layers) {}

Decoder::LayerDone GradientReducer::overlapped() {
  if (when_ == Reduce::kAtEnd) return {};
  return [this](int64_t layer) {
    if (layer != 0 && left_ - layer < bucket_layers_) return;
    reduce_layers(layer, left_);
    left_ = layer;
  };
}

void GradientReducer::reduce_layers(int64_t begin, int64_t end) {
  Stream& comm_stream = decoder_.stream().comm_stream();
  comm_stream.wait_stream(decoder_.stream());
  for (int g = 0; g < kReplicaGroups; ++g) {
    const auto group = static_cast<ReplicaGroup>(g);
    reduction_.reduce(comm_stream, group, decoder_.parameters().layer_grads(group, begin, end));
  }
}

double GradientReducer::finish(Communicator& world) {
  Stream& s = decoder_.stream();
  const PhaseScope phase(s, Phase::kOptimizer);
  for (; left_ > 0; left_ -= std::min(left_, bucket_layers_))
    reduce_layers(std::max<int64_t>(0, left_ - bucket_layers_), left_);
  s.wait_stream(s.comm_stream());
  const Tensor sum = decoder_.scalar();
  fill_zero(s, sum);
  for (int g = 0; g < kReplicaGroups; ++g) {
    const auto group = static_cast<ReplicaGroup>(g);
    const Tensor& flat = decoder_.parameters().flat_grad(group);
    if (flat.cols == 0) continue;
    reduction_.reduce(s, group, decoder_.parameters().other_grads(group));
    if (reduction_.replica(group) == 0) sum_squares(s, flat, sum);
  }
  world.all_reduce_sum(s, sum);
  double squares = 0;
  copy_to_host(s, sum, &squares);
  return std::sqrt(squares);
}

namespace {

bool follows(const Tensor& a, const Tensor& b) {
  return a.contiguous() && b.contiguous() &&
         static_cast<const std::byte*>(a.data) + a.bytes() == static_cast<const std::byte*>(b.data);
}

// One update of AdamW: a trainable parameter and those that follow it directly in every buffer.
struct FusedUpdate {
  Tensor master, grad, exp_avg, exp_avg_sq, compute_weight;  // flat; compute_weight may have a row stride

  explicit FusedUpdate(const Parameter& p)
      : master(flat(p.master)),
        grad(flat(p.grad)),
        exp_avg(flat(p.exp_avg)),
        exp_avg_sq(flat(p.exp_avg_sq)),
        compute_weight(p.compute_weight.contiguous() ? flat(p.compute_weight) : p.compute_weight) {}

  [[nodiscard]] bool take(const FusedUpdate& next) {
    const bool together = follows(master, next.master) && follows(grad, next.grad) &&
                          follows(exp_avg, next.exp_avg) && follows(exp_avg_sq, next.exp_avg_sq) &&
                          compute_weight.present() == next.compute_weight.present() &&
                          (!compute_weight.present() || follows(compute_weight, next.compute_weight));
    if (!together) return false;
    for (auto [mine, its] : {std::pair{&master, &next.master},
                             {&grad, &next.grad},
                             {&exp_avg, &next.exp_avg},
                             {&exp_avg_sq, &next.exp_avg_sq},
                             {&compute_weight, &next.compute_weight}})
      mine->cols = mine->ld = mine->cols + its->cols;
    return true;
  }

 private:
  static Tensor flat(const Tensor& t) { return t.reshaped(1, t.size()); }
};

std::vector<FusedUpdate> updates(const Decoder& decoder) {
  std::vector<FusedUpdate> all;
  for (const Parameter& p : decoder.parameters().all()) {
    if (!p.trainable || p.master.size() == 0) continue;
    const FusedUpdate next(p);
    if (all.empty() || !all.back().take(next)) all.push_back(next);
  }
  return all;
}

}  // namespace

void optimizer_step(Decoder& decoder, const AdamWConfig& c, double lr, int64_t update, double norm) {
  const PhaseScope phase(decoder.stream(), Phase::kOptimizer);
  const double factor = c.clip_norm > 0 ? std::min(1.0, c.clip_norm / (norm + 1e-6)) : 1.0;
  std::vector<AdamW> all;
  for (const FusedUpdate& n : updates(decoder)) {
    all.push_back({.param = n.master,
                   .grad = n.grad,
                   .exp_avg = n.exp_avg,
                   .exp_avg_sq = n.exp_avg_sq,
                   .compute_weight = n.compute_weight,
                   .lr = lr,
                   .beta1 = c.beta1,
                   .beta2 = c.beta2,
                   .eps = c.eps,
                   .weight_decay = c.weight_decay,
                   .step = update,
                   .grad_scale = static_cast<float>(factor)});
  }
  adamw(decoder.stream(), all);
}

}  // namespace pesc
