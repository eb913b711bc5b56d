#include "runtime/cluster_plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "ops/core/check.h"
#include "parallel/gradient_reduction.h"
#include "runtime/least_traffic.h"

namespace pesc {
namespace {

constexpr double kSnapshotRate = 20e9;  // bytes a second from a GPU to pinned host memory, over PCIe
// From a failure to the first step after it, without reading the base and the checkpoint: noticing it and
// starting, as on one H200 (tests/bench/h200.md).
constexpr double kNoticeAndStart = 7.3;
// The steps during an asynchronous save are slower by so much of one step, in all, but by no more than the writing
// takes (the quick start's, in tests/bench/two-cores.md, "What a save costs").
constexpr double kSlowerDuringSave = 0.03;
constexpr double kBackwardShare = 0.5;  // of the work of a step; a frozen base has no weight gradients
// The reduction's buckets: whole layers of at least so many bytes (GradientReducer).
constexpr double kBucketBytes = 8 << 20;

constexpr const char* kReplicaNames[kReplicaGroups] = {"all ranks", "dp", "dp of a KV head", "experts"};

class LayoutTimes {
 public:
  LayoutTimes(const ExperimentConfig& config, const ModelConfig& model, const Cluster& cluster)
      : config_(config),
        model_(model),
        cluster_(cluster),
        mesh_(cluster.gpus(), 0, config.parallel.tp, config.parallel.ep),
        links_{cluster.gpus_per_host, cluster.rates.link, kNetworkShare * cluster.network} {}

  [[nodiscard]] ClusterLayout layout() {
    ClusterLayout l;
    l.dp = mesh_.dp();
    l.tp = mesh_.tp();
    l.ep = mesh_.ep();
    const int64_t rows = config_.train.micro_batch_rows();
    const int64_t most = (rows + l.dp - 1) / l.dp;
    l.rows = static_cast<double>(most);
    // The plan's ranks all have as many rows.
    ExperimentConfig even = config_;
    even.train.global_batch_size = most * l.dp * micros();
    plan_ = make_plan(even, model_, mesh_.world(), cluster_.rates);
    for (const PlanPhase& phase : plan_.phases)
      if (!sends(phase.name)) l.compute += phase.seconds;
    const DecoderOptions options =
        decoder_options(even, mesh_, device_of(even, even.parallel.num_threads), training_use(even));
    chunks_ = options.capacity.dispatch_chunks;
    add_tensor_parallel(l);
    add_exchange(l);
    add_gradients(l, options);
    l.seconds = l.compute;
    for (const ClusterCollective& c : l.collectives) l.seconds += c.exposed;
    l.tokens_per_second =
        static_cast<double>(config_.train.global_batch_size * config_.data.max_seq_length) / l.seconds;
    l.goodput = goodput_of(l);
    return l;
  }

 private:
  [[nodiscard]] int64_t micros() const { return config_.train.gradient_accumulation_steps; }
  [[nodiscard]] double layers() const { return static_cast<double>(model_.num_hidden_layers); }
  [[nodiscard]] bool overlaps() const { return config_.parallel.overlap_comm == Overlap::kOn; }
  [[nodiscard]] double sent_by(const char* name) const {
    const auto at = std::ranges::find(plan_.phases, name, &PlanPhase::name);
    PESC_CHECK(at != plan_.phases.end(), "the plan has no phase '", name, "'");
    return at->sent;
  }
  [[nodiscard]] GroupSpread spread(const std::vector<int>& members) const {
    return spread_of(members, cluster_.gpus_per_host);
  }

  // Gathers and reduce-scatters of attention and FFN, forward and backward, and those of A x beside them.
  void add_tensor_parallel(ClusterLayout& l) const {
    if (l.tp == 1) return;
    ClusterCollective c{.name = kTensorParallelPhase, .group = spread(mesh_.tp_members())};
    const double again = config_.train.recompute_granularity == Recompute::kFull ? 1.5 : 1;
    const bool lora = config_.pesc.mode != TrainMode::kFull && config_.pesc.lora.r > 0;
    c.calls = static_cast<double>(micros()) * ((lora ? 16 : 8) * again * layers() + 3);
    c.sent = sent_by(kTensorParallelPhase);
    c.latency = c.calls * gather_latency(c.group);
    c.seconds = c.exposed = c.latency + c.sent / ring_rate(links_, c.group);
    l.collectives.push_back(c);
  }

  // Of tokens: rows and weights there, rows back; in the backward gradients there, rows and gradients of the weights
  // back; in chunks, of which all but one are hidden. Of weights: a layer's, gathered in the forward and the backward,
  // and the sum of their gradients; hidden by the other layers, as far as those take long enough.
  void add_exchange(ClusterLayout& l) const {
    const auto phase =
        std::ranges::find_if(plan_.phases, [](const PlanPhase& p) { return is_exchange(p.name); });
    if (phase == plan_.phases.end() || phase->sent == 0) return;
    std::vector<int> members;
    for (int rank = 0; rank < l.ep; ++rank) members.push_back(rank);
    ClusterCollective c{.name = phase->name, .group = spread(members)};
    c.sent = phase->sent;
    if (phase->name.starts_with("token")) {
      const double again = config_.train.recompute_granularity == Recompute::kNone ? 0 : 3;
      c.calls = (6 + again) * layers() * chunks_ * static_cast<double>(micros());
      c.latency = c.calls * all_to_all_latency(c.group);
      c.seconds = c.latency + all_to_all_seconds(links_, c.group, c.sent);
      c.exposed = overlaps() ? c.seconds / chunks_ : c.seconds;
    } else {
      c.calls = 3 * layers() * static_cast<double>(micros());
      c.latency = c.calls * gather_latency(c.group);
      c.seconds = c.latency + c.sent / ring_rate(links_, c.group);
      c.exposed = overlaps() ? std::max(c.seconds / layers(), c.seconds - l.compute) : c.seconds;
    }
    l.collectives.push_back(c);
  }

  void add_gradients(ClusterLayout& l, const DecoderOptions& options) const {
    Arena weights = Arena::planning("weights"), compute_weights = Arena::planning("bf16 compute weights"),
          optimizer = Arena::planning("optimizer");
    const ModelParameters parameters(model_, config_.pesc, mesh_, options.precision(),
                                     {weights, compute_weights, &optimizer});
    double bytes[kReplicaGroups] = {}, all = 0;  // float32 gradients of a rank
    for (const Parameter& p : parameters.all()) {
      if (!p.trainable) continue;
      const double size = 4 * static_cast<double>(p.spec.rows * p.spec.cols);
      bytes[static_cast<int>(p.group)] += size;
      all += size;
    }
    const double buckets =
        std::max(1.0, layers() / std::max(1.0, std::ceil(kBucketBytes * layers() / std::max(all, 1.0))));
    double seconds = 0;
    const size_t first = l.collectives.size();
    for (int g = 0; g < kReplicaGroups; ++g) {
      const auto group = static_cast<ReplicaGroup>(g);
      const GroupSpread on = spread(replica_members(group, mesh_, model_.num_key_value_heads));
      if (on.ranks == 1 || bytes[g] == 0) continue;
      ClusterCollective c{.name = str_cat(kGradientPhase, ", ", kReplicaNames[g]), .group = on};
      c.calls = buckets;
      c.sent = 2 * bytes[g] * (on.ranks - 1) / on.ranks;
      c.latency = c.calls * all_reduce_latency(on);
      c.seconds = c.exposed = c.latency + c.sent / ring_rate(links_, on);
      c.two_level = c.calls * two_level_all_reduce_seconds(links_, on, bytes[g] / c.calls);
      seconds += c.seconds;
      l.collectives.push_back(c);
    }
    if (!overlaps() || seconds == 0) return;
    // The backward hides all buckets but the last one, as far as it is long enough.
    const double backward = kBackwardShare * l.compute / static_cast<double>(micros());
    const double exposed = std::max(seconds / buckets, seconds - backward);
    for (size_t i = first; i < l.collectives.size(); ++i) l.collectives[i].exposed *= exposed / seconds;
  }

  // A snapshot is copied to host memory, then written. An asynchronous save costs what of the copy is left when the
  // next update comes, and slows the steps a little; the next save waits until the files are written.
  [[nodiscard]] ClusterGoodput goodput_of(const ClusterLayout& l) const {
    ClusterGoodput g;
    const auto of_rank = static_cast<double>(plan_.host_bytes);
    const double trained = 12.0 * static_cast<double>(plan_.trainable);
    g.copied = of_rank / kSnapshotRate;
    g.written = of_rank * cluster_.gpus_per_host / cluster_.storage;
    const bool async = config_.checkpoint.async_save;
    g.costs.mtbf = cluster_.gpu_mtbf / cluster_.gpus();
    g.costs.save =
        async ? std::min(kSlowerDuringSave * l.seconds, g.written) + std::max(0.0, g.copied - l.seconds)
              : g.copied + g.written;
    // Every host reads the base in 16 bits and the checkpoint.
    g.costs.restart =
        kNoticeAndStart + (2.0 * static_cast<double>(plan_.frozen) + trained) / cluster_.storage;
    const double shortest = std::max(l.seconds, async ? g.copied + g.written : 0);
    const double wanted = std::max(shortest, best_save_interval(g.costs));
    g.save_steps = std::max(1.0, std::round(wanted / l.seconds));
    if (g.save_steps * l.seconds < shortest) ++g.save_steps;
    g.interval = g.save_steps * l.seconds;
    g.share = goodput(g.costs, g.interval);
    return g;
  }

  const ExperimentConfig& config_;
  const ModelConfig& model_;
  const Cluster& cluster_;
  Mesh mesh_;
  ClusterLinks links_;
  Plan plan_;
  int chunks_ = 1;
};

std::string gib_text(double bytes) {
  char text[40];
  std::snprintf(text, sizeof(text), "%.1f GiB", bytes / kGiB);
  return text;
}

}  // namespace

ClusterPlan plan_cluster(const ExperimentConfig& config, const ModelConfig& model, const Cluster& cluster,
                         const MemoryRoom& room) {
  ClusterPlan plan;
  const int world = cluster.gpus();
  const auto consider = [&](int tp, int ep) {
    ExperimentConfig changed = config;
    changed.parallel.tp = tp;
    changed.parallel.ep = ep;
    try {
      validate_layout(model, changed.pesc, world, tp, ep);
    } catch (const Error& error) {
      return plan.refused.push_back({tp, ep, error.what()});
    }
    const double needed = needed_bytes(changed, model, world, training_use(changed), room.against);
    if (room.bytes > 0 && needed > room.of_rank(world)) {
      return plan.refused.push_back(
          {tp, ep, str_cat("needs ", gib_text(needed), " of ", gib_text(room.of_rank(world)))});
    }
    plan.layouts.push_back(LayoutTimes(changed, model, cluster).layout());
    plan.layouts.back().needed = needed;
  };
  const int64_t experts = config.pesc.mode == TrainMode::kPesc ? config.pesc.moe.num_experts : 1;
  const auto with_tp = [&](int tp) {
    for (int ep = 1; ep <= std::min<int64_t>(experts, world); ++ep)
      if (world % ep == 0 && experts % ep == 0) consider(tp, ep);
  };
  for (int tp = 1; tp <= cluster.gpus_per_host; ++tp)
    if (cluster.gpus_per_host % tp == 0) with_tp(tp);
  if (plan.layouts.empty()) {
    plan.tp_between_hosts = true;
    for (int tp = 1; tp <= std::min<int64_t>(world, model.num_attention_heads); ++tp)
      if (world % tp == 0 && (tp > cluster.gpus_per_host || cluster.gpus_per_host % tp != 0)) with_tp(tp);
  }
  // Of equals the one that cuts least.
  std::ranges::stable_sort(
      plan.layouts, [](const ClusterLayout& a, const ClusterLayout& b) { return a.useful() > b.useful(); });
  return plan;
}

}  // namespace pesc
