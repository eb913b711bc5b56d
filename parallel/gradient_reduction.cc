// The groups of the gradient reduction table, as splits of the world; see gradient_reduction.h.
#include "parallel/gradient_reduction.h"

#include <array>

namespace pesc {
namespace {

// Ranks with the same colour hold the same piece.
std::array<int, kReplicaGroups> colours(const Mesh& mesh, int64_t kv_heads) {
  const int64_t tp = mesh.tp();
  if (kv_heads < 1 || (kv_heads % tp != 0 && tp % kv_heads != 0)) {
    throw UsageError(str_cat("layout: tp = ", tp, " and the model's ", kv_heads,
                             " KV heads: one must divide the other; choose another tp"));
  }
  const int kv_piece = kv_heads >= tp ? mesh.tp_rank() : static_cast<int>(mesh.tp_rank() / (tp / kv_heads));
  return {0, mesh.tp_rank(), kv_piece, mesh.ep_rank()};
}

constexpr std::array<const char*, kReplicaGroups> kNames = {"gradients.world", "gradients.dp",
                                                            "gradients.dp_kv", "gradients.expert"};

}  // namespace

std::vector<int> replica_members(ReplicaGroup group, const Mesh& mesh, int64_t kv_heads) {
  const auto g = static_cast<size_t>(group);
  const int mine = colours(mesh, kv_heads).at(g);
  std::vector<int> members;
  for (int r = 0; r < mesh.world(); ++r)
    if (colours(Mesh(mesh.world(), r, mesh.tp(), mesh.ep()), kv_heads).at(g) == mine) members.push_back(r);
  return members;
}

GradientReduction::GradientReduction(Communicator& world, const Mesh& mesh, int64_t kv_heads) {
  PESC_CHECK(world.size() == mesh.world() && world.rank() == mesh.rank(), "rank ", world.rank(), " of ",
             world.size(), " with the mesh of rank ", mesh.rank(), " of ", mesh.world());
  const auto colour = colours(mesh, kv_heads);
  for (size_t g = 0; g < kReplicaGroups; ++g) groups_.push_back(world.split(colour[g], kNames[g]));
}

Communicator& GradientReduction::communicator(ReplicaGroup group) const {
  return *groups_.at(static_cast<size_t>(group));
}

int GradientReduction::replicas(ReplicaGroup group) const {
  return communicator(group).size();
}

int GradientReduction::replica(ReplicaGroup group) const {
  return communicator(group).rank();
}

void GradientReduction::reduce(Stream& stream, ReplicaGroup group, const Tensor& flat) const {
  Communicator& ranks = communicator(group);
  if (ranks.size() == 1 || flat.size() == 0) return;
  const PhaseScope phase(stream, Phase::kCommunication);
  ranks.all_reduce_sum(stream, flat);
}

}  // namespace pesc
