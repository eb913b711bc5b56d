// pesc plan --hosts: the layouts of a cluster, as text and JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "runtime/cluster_plan.h"

namespace pesc {

// As text: the layouts that fit with the terms of their step, why the first one is the best, its collectives, and
// how often to save. `machine` says what each GPU is assumed to be. REQUIRES: a layout fits.
[[nodiscard]] std::string cluster_text(const ExperimentConfig& config, const ClusterPlan& plan,
                                       const Cluster& cluster, const std::string& machine);

// The best layout where collectives overlap with work (parallel.overlap_comm), in a line.
[[nodiscard]] std::string overlapped_text(const ClusterLayout& best);

[[nodiscard]] nlohmann::json cluster_json(const ExperimentConfig& config, const ClusterPlan& plan,
                                          const Cluster& cluster, const std::string& machine);

}  // namespace pesc
