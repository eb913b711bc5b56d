// pesc plan --hosts: the layouts of a cluster, as text and JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "runtime/cluster_plan.h"

namespace pesc {

struct ClusterRequest {
  const ExperimentConfig& config;
  const ModelConfig& model;
  Cluster cluster;
  MemoryRoom room;      // of a GPU
  std::string machine;  // what each GPU is assumed to be
};

// Prints the plan, and writes it to the file `out` unless that is empty.
void report_cluster_plan(const ClusterRequest& request, const std::string& out);

// As text: the layouts that fit with the terms of their step, why the first one is the best, its collectives, and
// how often to save. REQUIRES: a layout fits.
[[nodiscard]] std::string cluster_text(const ClusterRequest& request, const ClusterPlan& plan);
[[nodiscard]] nlohmann::json cluster_json(const ClusterRequest& request, const ClusterPlan& plan);

}  // namespace pesc
