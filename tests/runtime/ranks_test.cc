// Binding and threads of ranks that share a host: what each gets of the cores that this job may use.
#include "runtime/ranks.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <map>
#include <set>
#include <vector>

namespace pesc {
namespace {

std::set<int> bound_to() {
  cpu_set_t mine;
  CPU_ZERO(&mine);
  EXPECT_EQ(sched_getaffinity(0, sizeof(mine), &mine), 0);
  std::set<int> cores;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &mine)) cores.insert(i);
  }
  return cores;
}

void bind_to(int core) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
}

class Placement : public ::testing::Test {
 protected:
  void SetUp() override {
    before_ = bound_to();
    n_ = place_rank_on_host(0, 1, 0).cores;
    all_ = bound_to();
    ASSERT_EQ(std::ssize(all_), n_);
    ASSERT_GE(n_, std::ssize(before_));
  }
  void TearDown() override {
    cpu_set_t mine;
    CPU_ZERO(&mine);
    for (const int core : before_) CPU_SET(core, &mine);
    sched_setaffinity(0, sizeof(mine), &mine);
  }
  // Places every rank of the host in turn, each from the binding that mpirun gives by default, one core.
  // Returns how many ranks each core has.
  std::map<int, int> place_all(int ranks, int expected_threads) {
    std::map<int, int> load;
    for (int rank = 0; rank < ranks; ++rank) {
      bind_to(*all_.rbegin());
      const HostPlacement p = place_rank_on_host(rank, ranks, 0);
      EXPECT_EQ(p.cores, n_);
      EXPECT_EQ(p.local_rank, rank);
      EXPECT_EQ(p.threads, expected_threads) << rank << " of " << ranks;
      const std::set<int> mine = bound_to();
      // No rank has more threads than cores: small products would wait for the thread that is off its core.
      EXPECT_LE(p.threads, std::ssize(mine));
      for (const int core : mine) ++load[core];
    }
    return load;
  }

  std::set<int> before_, all_;
  int n_ = 0;
};

TEST_F(Placement, OneRankHasTheHost) {
  bind_to(*all_.begin());
  const HostPlacement p = place_rank_on_host(0, 1, 0);
  EXPECT_EQ(p.threads, n_);
  EXPECT_EQ(bound_to(), all_);
}

TEST_F(Placement, TwoRanksHalveIt) {
  if (n_ < 2) return;  // then two ranks are "more ranks than cores", below
  const std::map<int, int> load = place_all(2, n_ / 2);
  EXPECT_EQ(std::ssize(load), n_);
  for (const auto& [core, ranks] : load) EXPECT_EQ(ranks, 1) << core;
}

TEST_F(Placement, ARankForEachCore) {
  const std::map<int, int> load = place_all(n_, 1);
  EXPECT_EQ(std::ssize(load), n_);
  for (const auto& [core, ranks] : load) EXPECT_EQ(ranks, 1) << core;
}

TEST_F(Placement, MoreRanksThanCoresShareThemEvenly) {
  const std::map<int, int> load = place_all(4 * n_, 1);
  EXPECT_EQ(std::ssize(load), n_);
  for (const auto& [core, ranks] : load) EXPECT_EQ(ranks, 4) << core;
  if (n_ < 2) return;
  // Neighbours, a tp pair, stand on different cores.
  (void)place_rank_on_host(0, 4 * n_, 0);
  const std::set<int> first = bound_to();
  (void)place_rank_on_host(1, 4 * n_, 0);
  EXPECT_EQ(std::ssize(first), 1);
  EXPECT_NE(first, bound_to());
}

TEST_F(Placement, TheExperimentsThreadsComeFirst) {
  EXPECT_EQ(place_rank_on_host(0, 1, 3).threads, 3);
  EXPECT_EQ(place_rank_on_host(1, 4 * n_, 2).threads, 2);
}

}  // namespace
}  // namespace pesc
