// The gradient reduction table. A gradient is summed over exactly the ranks that hold the same piece of its
// parameter (parallel/README.md shows which these are), and replica 0 of the group counts it in the global
// norm.
//
// The gradients of one group's parameters share one flat buffer, so that a group takes one collective.
#pragma once

#include <memory>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/mesh.h"

namespace pesc {

// Which ranks hold the same piece of a parameter.
enum class ReplicaGroup {
  kWorld,  // all ranks: router, LoRA A of q,k,v,gate,up, LoRA B of o,down, norms
  kDp,     // the dp ranks with this tp_rank: pieces that are split over tp
  kDpKv,   // k and v: the dp ranks, times the tp ranks that hold the same KV head (tp / kv_heads, at least 1)
  kExpert,  // adapters: the world / ep ranks with this rank's ep_rank
};
inline constexpr int kReplicaGroups = 4;

// The ranks of mesh.rank()'s group, in rising order. Throws UsageError when neither of tp and kv_heads
// divides the other.
[[nodiscard]] std::vector<int> replica_members(ReplicaGroup group, const Mesh& mesh, int64_t kv_heads);

class GradientReduction {
 public:
  // Splits `world` into the groups; collective. `kv_heads` decides kDpKv.
  GradientReduction(Communicator& world, const Mesh& mesh, int64_t kv_heads);

  // The number of ranks in this rank's group, and this rank's number in it. Number 0 counts the norm.
  [[nodiscard]] int replicas(ReplicaGroup group) const;
  [[nodiscard]] int replica(ReplicaGroup group) const;

  // Overwrites the flat gradient buffer [1, n] with its sum over the group, in rank order. Collective over
  // the group.
  void reduce(Stream& stream, ReplicaGroup group, const Tensor& flat) const;

  [[nodiscard]] Communicator& communicator(ReplicaGroup group) const;

 private:
  std::vector<std::unique_ptr<Communicator>> groups_;  // indexed by ReplicaGroup
};

}  // namespace pesc
