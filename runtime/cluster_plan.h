// A training run on a cluster of equal hosts, on paper: the layouts that are possible, how long a step takes with
// each, and what of the time failures leave.
//
// Work on a GPU takes as long as in runtime/plan.h, of the rank with most rows: where dp does not divide the rows
// of a micro-batch, some ranks have one row less, or none. Collectives take as long as in runtime/cluster_links.h.
// parallel.overlap_comm hides them as in runtime/plan.h, but of the gradients no more than the backward of the
// last micro-batch takes.
#pragma once

#include <string>
#include <vector>

#include "runtime/checkpoint_interval.h"
#include "runtime/cluster_links.h"
#include "runtime/fitting.h"
#include "runtime/plan.h"

namespace pesc {

struct Cluster {
  int hosts = 1, gpus_per_host = 8;
  MachineRates rates;   // of a GPU; `link` is NVLink
  double network = 0;   // bytes a second of a GPU's link to other hosts, its line rate
  double gpu_mtbf = 0;  // seconds that a GPU works until a failure ends the job
  double storage = 0;   // bytes a second that a host reads and writes
  [[nodiscard]] int gpus() const { return hosts * gpus_per_host; }
};

// Collectives of a step for one purpose, in one group or in several.
struct ClusterCollective {
  std::string name;  // of the plan's phase; of a reduction also the replicas' group
  GroupSpread group;
  double calls = 0, sent = 0;  // of a rank
  double latency = 0;          // of all calls
  double seconds = 0;          // of all, latency and bytes
  double exposed = 0;          // that the step waits for
  double two_level = 0;        // of an all-reduce: the seconds in two levels instead of one ring; else 0
};

// Where the time of a run goes that saves at the best interval.
struct ClusterGoodput {
  FailureCosts costs;
  double copied = 0, written = 0;  // seconds for the snapshot of a rank, and for the files of a host
  double interval = 0;             // seconds between saves
  double save_steps = 0;
  double share = 1;  // goodput
};

struct ClusterLayout {
  int dp = 1, tp = 1, ep = 1;
  double needed = 0;  // bytes of the rank that takes the most, as needed_bytes
  double rows = 0;    // of a micro-batch, of the rank with most
  double compute = 0, seconds = 0;
  std::vector<ClusterCollective> collectives;
  ClusterGoodput goodput;
  double tokens_per_second = 0;  // of rows that exist, while steps run
  [[nodiscard]] double useful() const { return tokens_per_second * goodput.share; }
};

struct RefusedLayout {
  int tp = 1, ep = 1;
  std::string why;
};

struct ClusterPlan {
  std::vector<ClusterLayout> layouts;  // that fit, the most useful tokens a second first
  std::vector<RefusedLayout> refused;
  bool tp_between_hosts = false;  // nothing fits with each tp group inside of a host
};

// Every layout whose tp and ep divide, with the experiment's batch and recomputation. A tp group stays inside of a
// host unless nothing else fits. A layout fits where needed_bytes, which also judges a run before it loads, is
// at most the room of a rank.
[[nodiscard]] ClusterPlan plan_cluster(const ExperimentConfig& config, const ModelConfig& model,
                                       const Cluster& cluster, const MemoryRoom& room);

}  // namespace pesc
