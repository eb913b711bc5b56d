#include "runtime/cluster_links.h"

#include <algorithm>
#include <set>

namespace pesc {
namespace {

// NCCL's figures for Ring and Simple, in seconds: of a call, of a step over NVLink, of a step over a network
// (src/graph/tuning.cc: baseLat and hwLat, NCCL 2.14 to 2.28).
constexpr double kCallLatency = 8.4e-6, kInsideLatency = 3.4e-6, kBetweenLatency = 14e-6;

double latency(double steps, double between) {
  return kCallLatency + (steps - between) * kInsideLatency + between * kBetweenLatency;
}

}  // namespace

GroupSpread spread_of(const std::vector<int>& members, int gpus_per_host) {
  std::set<int> hosts;
  for (const int rank : members) hosts.insert(rank / gpus_per_host);
  return {static_cast<int>(members.size()), static_cast<int>(hosts.size())};
}

double ring_rate(const ClusterLinks& links, const GroupSpread& group) {
  return group.hosts == 1 ? links.inside : std::min(links.inside, group.of_host() * links.between);
}

double all_reduce_latency(const GroupSpread& g) {
  return g.ranks == 1 ? 0 : latency(2.0 * (g.ranks - 1), 2.0 * (g.hosts - 1));
}

double gather_latency(const GroupSpread& g) {
  return g.ranks == 1 ? 0 : latency(g.ranks - 1, g.hosts - 1);
}

// All messages leave at once.
double all_to_all_latency(const GroupSpread& g) {
  return g.ranks == 1 ? 0 : latency(1, g.hosts > 1 ? 1 : 0);
}

double all_to_all_seconds(const ClusterLinks& links, const GroupSpread& group, double sent) {
  if (group.ranks == 1) return 0;
  const double between = (group.ranks - group.of_host()) / (group.ranks - 1);
  return std::max(sent * (1 - between) / links.inside, group.hosts > 1 ? sent * between / links.between : 0);
}

double two_level_all_reduce_seconds(const ClusterLinks& links, const GroupSpread& group, double bytes) {
  const auto ring = [&links](const GroupSpread& g, double all) {
    return g.ranks == 1 ? 0 : all_reduce_latency(g) + 2 * all * (g.ranks - 1) / g.ranks / ring_rate(links, g);
  };
  const int inside = static_cast<int>(group.of_host());
  if (group.hosts == 1 || inside == 1) return ring(group, bytes);
  const GroupSpread host{inside, 1}, across{group.hosts, group.hosts};
  const double scattered = bytes * (inside - 1) / inside / links.inside;
  return 2 * (gather_latency(host) + scattered) + ring(across, bytes / inside);
}

}  // namespace pesc
