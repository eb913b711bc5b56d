// ranks: 1 2 4 8
// The ranks over which a gradient is summed, for every layout and number of KV heads, against the table of
// parallel/README.md as predicates over pairs of ranks. With PESC_TEST_DEVICE=cuda over NCCL.
#include "parallel/gradient_reduction.h"

#include <gtest/gtest.h>

#include "tests/device.h"
#include "tests/parallel/on_device.h"

namespace pesc {
namespace {

// Do ranks a and b hold the same piece?
bool same_piece(ReplicaGroup group, int a, int b, int tp, int ep, int64_t kv_heads) {
  const int ta = a % tp;
  const int tb = b % tp;
  switch (group) {
    case ReplicaGroup::kWorld:
      return true;
    case ReplicaGroup::kDp:
      return ta == tb;
    case ReplicaGroup::kDpKv:  // the first KV head of a rank's piece, and (heads per rank >= 1) nothing else
      return ta * kv_heads / tp == tb * kv_heads / tp && (kv_heads < tp || ta == tb);
    case ReplicaGroup::kExpert:
      return a % ep == b % ep;
  }
  return false;
}

TEST(GradientReduction, SumsOverTheRanksOfTheTable) {
  const MpiSession session;
  const auto world = test_world(session);
  const int n = world->size();
  const int rank = world->rank();
  Stream stream{test_device()};
  // Which ranks those are is decided on the host, and each group is one more communicator to be opened: on a
  // GPU fewer KV heads than tp, as many and more.
  const std::vector<int64_t> heads =
      test_on_gpu() ? std::vector<int64_t>{2} : std::vector<int64_t>{1, 2, 4, 8, 16};
  for (int tp = 1; tp <= n; tp *= 2) {
    for (int ep = 1; ep <= n; ep *= 2) {
      for (const int64_t kv_heads : heads) {
        SCOPED_TRACE(str_cat("world ", n, " tp ", tp, " ep ", ep, " kv_heads ", kv_heads));
        const GradientReduction reduction(*world, Mesh(n, rank, tp, ep), kv_heads);
        for (int g = 0; g < kReplicaGroups; ++g) {
          const auto group = static_cast<ReplicaGroup>(g);
          int replicas = 0;
          int replica = 0;
          float members = 0;
          for (int r = 0; r < n; ++r) {
            if (!same_piece(group, rank, r, tp, ep, kv_heads)) continue;
            ++replicas;
            if (r < rank) ++replica;
            members += static_cast<float>(1 << r);
          }
          EXPECT_EQ(reduction.replicas(group), replicas) << "group " << g;
          EXPECT_EQ(reduction.replica(group), replica) << "group " << g;
          // Each rank adds its own bit: the sum names the ranks that were summed over.
          std::vector<float> flat = {static_cast<float>(1 << rank), 1.0F};
          OnDevice there(stream, flat, 1, 2);
          reduction.reduce(stream, group, there.view);
          there.fetch();
          EXPECT_EQ(flat[0], members) << "group " << g;
          EXPECT_EQ(flat[1], static_cast<float>(replicas)) << "group " << g;
          reduction.reduce(stream, group, there.view.col_range(0, 0));  // nothing trained in this group
        }
      }
    }
  }
}

TEST(GradientReduction, RefusesKvHeadsThatDoNotDivide) {
  const MpiSession session;
  const auto world = session.world();
  const int n = world->size();
  const Mesh mesh(n, world->rank(), n, 1);
  EXPECT_THROW(GradientReduction(*world, mesh, 0), UsageError);
  if (n == 2 || n == 4) {
    EXPECT_THROW(GradientReduction(*world, mesh, 3), UsageError);
  }
  EXPECT_THROW(GradientReduction(*world, Mesh(n + 1, world->rank(), 1, 1), 1), InternalError);
}

}  // namespace
}  // namespace pesc
