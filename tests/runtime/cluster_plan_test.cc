// A run on a cluster, on paper: links, collectives, layouts and their order.
#include "runtime/cluster_plan.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "parallel/gradient_reduction.h"
#include "runtime/config/shapes.h"
#include "runtime/least_traffic.h"

namespace pesc {
namespace {

using Words = std::vector<std::string>;

ExperimentConfig on_gpus(const Words& overrides = {}) {
  return parse_experiment(
      "name: \"cluster\" train { max_steps: 1 global_batch_size: 64 } data { max_seq_length: 2048 } parallel "
      "{ "
      "device: CUDA } lora { r: 64 } moe { num_experts: 8 num_experts_per_tok: 2 adapter_dim: 64 } model { "
      "shape { "
      "vocab_size: 32000 hidden_size: 4096 intermediate_size: 11008 num_hidden_layers: 32 "
      "num_attention_heads: 32 "
      "max_position_embeddings: 4096 } }",
      "cluster_plan_test", overrides, ExperimentUse::kBench);
}

Cluster cluster_of(int hosts, int gpus_per_host = 8) {
  return {.hosts = hosts,
          .gpus_per_host = gpus_per_host,
          .rates = gpu_rates(kAssumedGpu, DType::kBF16),
          .network = 50e9,
          .gpu_mtbf = 3600 * 5e4,
          .storage = 1e9};
}

ClusterPlan planned(const ExperimentConfig& config, const Cluster& cluster, const std::string& shape = "7B") {
  return plan_cluster(config, load_shape(shape), cluster, {cluster.rates.device_memory});
}

const ClusterLayout& layout_of(const ClusterPlan& plan, int tp, int ep) {
  const auto at =
      std::ranges::find_if(plan.layouts, [&](const ClusterLayout& l) { return l.tp == tp && l.ep == ep; });
  if (at == plan.layouts.end()) throw std::runtime_error(str_cat("no tp ", tp, ", ep ", ep));
  return *at;
}

const ClusterCollective* find(const ClusterLayout& l, const std::string& begin) {
  for (const ClusterCollective& c : l.collectives)
    if (c.name.starts_with(begin)) return &c;
  return nullptr;
}

TEST(ClusterLinks, AGroupLiesOnTheHostsOfItsRanks) {
  const Mesh mesh(32, 0, 2, 4);
  const auto spread = [&mesh](ReplicaGroup group) { return spread_of(replica_members(group, mesh, 32), 8); };
  EXPECT_EQ(spread(ReplicaGroup::kWorld).ranks, 32);
  EXPECT_EQ(spread(ReplicaGroup::kWorld).hosts, 4);
  EXPECT_EQ(spread(ReplicaGroup::kDp).ranks, 16);
  EXPECT_EQ(spread(ReplicaGroup::kDp).of_host(), 4);
  EXPECT_EQ(spread(ReplicaGroup::kExpert).ranks, 8);
  EXPECT_EQ(spread(ReplicaGroup::kExpert).of_host(), 2);
  EXPECT_EQ(spread_of(mesh.tp_members(), 8).hosts, 1);
}

TEST(ClusterLinks, TheNarrowestLinkOfARingDecides) {
  const ClusterLinks links{8, 300e9, 45e9};
  EXPECT_EQ(ring_rate(links, {8, 1}), 300e9);
  EXPECT_EQ(ring_rate(links, {16, 2}), 300e9);  // the links of eight GPUs are wider than NVLink
  EXPECT_EQ(ring_rate(links, {8, 2}), 180e9);   // of four
  EXPECT_EQ(ring_rate(links, {64, 64}), 45e9);  // of one
  EXPECT_EQ(all_reduce_latency({1, 1}), 0);
  EXPECT_NEAR(all_reduce_latency({8, 1}), 8.4e-6 + 14 * 3.4e-6, 1e-12);
  EXPECT_NEAR(all_reduce_latency({16, 2}), 8.4e-6 + 28 * 3.4e-6 + 2 * 14e-6, 1e-12);
  EXPECT_NEAR(gather_latency({16, 2}), 8.4e-6 + 14 * 3.4e-6 + 14e-6, 1e-12);
  // To seven of fifteen others inside, to eight between hosts.
  EXPECT_NEAR(all_to_all_seconds(links, {16, 2}, 15e9), 8 / 45.0, 1e-9);
  EXPECT_NEAR(all_to_all_seconds(links, {8, 1}, 3e9), 0.01, 1e-12);
}

TEST(ClusterLinks, TwoLevelsAreFasterThanARingOverManyHosts) {
  const ClusterLinks links{8, 300e9, 45e9};
  const auto ring = [&](const GroupSpread& g, double bytes) {
    return all_reduce_latency(g) + 2 * bytes * (g.ranks - 1) / g.ranks / ring_rate(links, g);
  };
  EXPECT_EQ(two_level_all_reduce_seconds(links, {8, 1}, 1e9), ring({8, 1}, 1e9));
  EXPECT_EQ(two_level_all_reduce_seconds(links, {8, 8}, 1e9), ring({8, 8}, 1e9));
  const GroupSpread many{1024, 128};
  EXPECT_LT(two_level_all_reduce_seconds(links, many, 8e6), 0.5 * ring(many, 8e6));
}

TEST(ClusterPlan, ComparesAllLayoutsThatDivide) {
  const ClusterPlan plan = planned(on_gpus(), cluster_of(2));
  EXPECT_EQ(plan.layouts.size() + plan.refused.size(), 16U);  // tp and ep of 1, 2, 4, 8
  EXPECT_FALSE(plan.tp_between_hosts);
  for (size_t i = 0; i < plan.layouts.size(); ++i) {
    const ClusterLayout& l = plan.layouts[i];
    SCOPED_TRACE(str_cat("tp ", l.tp, ", ep ", l.ep));
    EXPECT_EQ(l.dp * l.tp, 16);
    if (i > 0) {
      EXPECT_LE(l.useful(), plan.layouts[i - 1].useful());
    }
    double exposed = l.compute;
    for (const ClusterCollective& c : l.collectives) {
      exposed += c.exposed;
      EXPECT_LE(c.exposed, c.seconds);
      EXPECT_GE(c.seconds, c.latency);
    }
    EXPECT_DOUBLE_EQ(l.seconds, exposed);
    EXPECT_EQ(find(l, kTensorParallelPhase) != nullptr, l.tp > 1);
    EXPECT_EQ(find(l, "token exchange") != nullptr, l.ep > 1);
    EXPECT_NE(find(l, kGradientPhase), nullptr);
    // The memory is that of the check before loading.
    ExperimentConfig same = on_gpus({str_cat("parallel.tp=", l.tp), str_cat("parallel.ep=", l.ep)});
    EXPECT_EQ(l.needed,
              needed_bytes(same, load_shape("7B"), 16, training_use(same), MemoryRoom::Against::kAll));
  }
}

// Nothing is sent that the plan of a job does not send.
TEST(ClusterPlan, SendsAsMuchAsThePlanOfAJob) {
  const ModelConfig model = load_shape("7B");
  const ClusterPlan plan = planned(on_gpus(), cluster_of(2));
  for (const auto& [tp, ep] : {std::pair{1, 1}, {2, 1}, {1, 8}, {2, 4}}) {
    const ExperimentConfig job = on_gpus({str_cat("parallel.tp=", tp), str_cat("parallel.ep=", ep)});
    double expected = 0, sent = 0;
    for (const PlanPhase& phase : make_plan(job, model, 16, cluster_of(2).rates).phases)
      expected += phase.sent;
    for (const ClusterCollective& c : layout_of(plan, tp, ep).collectives) sent += c.sent;
    EXPECT_NEAR(sent / expected, 1, 1e-9) << "tp " << tp << ", ep " << ep;
  }
}

TEST(ClusterPlan, KeepsTensorParallelismInsideOfAHostUnlessNothingElseFits) {
  const ClusterPlan inside = planned(on_gpus({"train.recompute_granularity=FULL"}), cluster_of(4, 2), "70B");
  EXPECT_FALSE(inside.tp_between_hosts);
  for (const ClusterLayout& l : inside.layouts) EXPECT_EQ(l.tp, 2);
  EXPECT_TRUE(std::ranges::any_of(inside.refused, [](const RefusedLayout& r) {
    return r.tp == 1 && r.why.starts_with("needs ") && r.why.ends_with(" of 139.0 GiB");
  }));
  Cluster small = cluster_of(4, 2);
  small.rates.device_memory = 60 * kGiB;
  const ClusterPlan between =
      planned(on_gpus({"train.recompute_granularity=FULL", "train.global_batch_size=8"}), small, "70B");
  EXPECT_TRUE(between.tp_between_hosts);
  ASSERT_FALSE(between.layouts.empty());
  for (const ClusterLayout& l : between.layouts) {
    EXPECT_GT(l.tp, 2);
    EXPECT_GT(find(l, kTensorParallelPhase)->group.hosts, 1);
  }
}

TEST(ClusterPlan, RowsThatDoNotDivideLeaveRanksWaiting) {
  const ClusterPlan even = planned(on_gpus({"train.global_batch_size=32"}), cluster_of(2));
  const ClusterPlan uneven = planned(on_gpus({"train.global_batch_size=24"}), cluster_of(2));
  const ClusterPlan few = planned(on_gpus({"train.global_batch_size=8"}), cluster_of(2));
  const auto one = [](const ClusterPlan& plan) { return layout_of(plan, 1, 1); };
  EXPECT_EQ(one(even).rows, 2);
  EXPECT_EQ(one(uneven).rows, 2);
  EXPECT_EQ(one(few).rows, 1);
  EXPECT_DOUBLE_EQ(one(uneven).seconds, one(even).seconds);
  EXPECT_NEAR(one(uneven).tokens_per_second / one(even).tokens_per_second, 0.75, 1e-9);
  EXPECT_DOUBLE_EQ(one(few).tokens_per_second, 8 * 2048 / one(few).seconds);
}

TEST(ClusterPlan, OverlappedGradientsAreHiddenAsFarAsTheBackwardIsLongEnough) {
  const Words overlap{"parallel.overlap_comm=true"};
  const ClusterPlan alone_plan = planned(on_gpus({"train.global_batch_size=64"}), cluster_of(2));
  const ClusterLayout& alone = layout_of(alone_plan, 1, 1);
  Words more = overlap;
  more.emplace_back("train.global_batch_size=64");
  const ClusterPlan hidden_plan = planned(on_gpus(more), cluster_of(2));
  const ClusterLayout& hidden = layout_of(hidden_plan, 1, 1);
  EXPECT_LT(hidden.seconds, alone.seconds);
  // 4096 ranks: the latency of the ring is longer than the backward.
  more = {"parallel.overlap_comm=true", "train.global_batch_size=4096"};
  const ClusterPlan many_plan = planned(on_gpus(more), cluster_of(512));
  const ClusterLayout& many = layout_of(many_plan, 1, 1);
  double reduction = 0, exposed = 0;
  for (const ClusterCollective& c : many.collectives) {
    reduction += c.seconds;
    exposed += c.exposed;
  }
  EXPECT_NEAR(exposed, reduction - 0.5 * many.compute, 1e-6 * reduction);
}

TEST(ClusterPlan, SavesAsOftenAsTheCostsOfFailuresSay) {
  const ClusterPlan few = planned(on_gpus(), cluster_of(1)), many = planned(on_gpus(), cluster_of(512));
  const ClusterGoodput& a = layout_of(few, 1, 1).goodput;
  const ClusterGoodput& b = layout_of(many, 1, 1).goodput;
  EXPECT_DOUBLE_EQ(a.costs.mtbf, 3600 * 5e4 / 8);
  EXPECT_DOUBLE_EQ(b.costs.mtbf, 3600 * 5e4 / 4096);
  EXPECT_LT(b.share, a.share);
  EXPECT_LT(b.interval, a.interval);
  for (const ClusterGoodput* g : {&a, &b}) {
    EXPECT_GE(g->interval, g->copied + g->written);  // an asynchronous save ends before the next one
    EXPECT_DOUBLE_EQ(g->share, goodput(g->costs, g->interval));
  }
  const ClusterPlan waits = planned(on_gpus({"checkpoint.async_save=false"}), cluster_of(512));
  const ClusterGoodput& c = layout_of(waits, 1, 1).goodput;
  EXPECT_DOUBLE_EQ(c.costs.save, c.copied + c.written);
  EXPECT_GT(c.costs.save, b.costs.save);
  EXPECT_LE(c.share, b.share);
}

}  // namespace
}  // namespace pesc
