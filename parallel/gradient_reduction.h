// The gradient reduction table: a gradient is summed over exactly the ranks that hold the same piece of its
// parameter (parallel/README.md), and its norm is counted once, by replica 0.
//
// Parameters of one group of ranks share one flat buffer, so that each group costs one collective.
#pragma once

#include <memory>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/mesh.h"

namespace pesc {

// Which ranks hold the same piece of a parameter.
enum class ReplicaGroup {
  kWorld,  // router, LoRA A of q,k,v,gate,up, LoRA B of o,down, norms
  kDp,     // pieces cut over tp
  kDpKv,  // k and v pieces: dp ranks, times the tp / kv_heads ranks that share a KV head (= kDp when kv_heads
          // >= tp)
  kExpert,  // adapters: the world / ep ranks with this rank's ep_rank
};
inline constexpr int kReplicaGroups = 4;

// The ranks of the group that mesh.rank() is in, in rising order. Throws UsageError where tp and kv_heads do
// not go together.
[[nodiscard]] std::vector<int> replica_members(ReplicaGroup group, const Mesh& mesh, int64_t kv_heads);

class GradientReduction {
 public:
  // Splits `world` into the groups; collective. `kv_heads` decides kDpKv.
  GradientReduction(Communicator& world, const Mesh& mesh, int64_t kv_heads);

  // The number of ranks in this rank's group, and this rank's number in it (0 counts in norms).
  [[nodiscard]] int replicas(ReplicaGroup group) const;
  [[nodiscard]] int replica(ReplicaGroup group) const;

  // Sums the flat gradient buffer [1, n] of a group over its ranks, in rank order.
  void reduce(Stream& stream, ReplicaGroup group, const Tensor& flat) const;

  [[nodiscard]] Communicator& communicator(ReplicaGroup group) const;

 private:
  std::vector<std::unique_ptr<Communicator>> groups_;  // indexed by ReplicaGroup
};

}  // namespace pesc
