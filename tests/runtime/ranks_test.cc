// Binding and threads of ranks that share a host: what each gets of the cores that it was given.
#include "runtime/ranks.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <map>
#include <numeric>
#include <set>
#include <vector>

namespace pesc {
namespace {

std::vector<int> first_cores(int n, int from = 0) {
  std::vector<int> cores(static_cast<size_t>(n));
  std::iota(cores.begin(), cores.end(), from);
  return cores;
}

// Each rank of a host that gave all its cores to all of them. How many ranks each core has.
std::map<int, int> load_of(int cores, int ranks, int expected_threads) {
  std::map<int, int> load;
  for (int rank = 0; rank < ranks; ++rank) {
    const HostPlacement p = divide_host({first_cores(cores), ranks, rank}, 0, cores, rank, ranks, 0);
    EXPECT_EQ(p.cores, cores);
    EXPECT_EQ(p.local_rank, rank);
    EXPECT_EQ(p.threads, expected_threads) << rank << " of " << ranks;
    EXPECT_EQ(p.why, "");
    const std::vector<int> mine = p.on.empty() ? first_cores(cores) : p.on;
    // No rank has more threads than cores: small GEMMs would wait for the thread that is off its core.
    EXPECT_LE(p.threads, std::ssize(mine));
    for (const int core : mine) ++load[core];
  }
  EXPECT_EQ(std::ssize(load), cores);
  return load;
}

TEST(DivideHost, RanksThatWereGivenTheSameCoresDivideThem) {
  struct Case {
    int cores, ranks, threads, ranks_of_a_core;
  };
  for (const Case& c :
       {Case{8, 1, 8, 1}, {8, 2, 4, 1}, {8, 3, 2, 1}, {8, 8, 1, 1}, {2, 8, 1, 4}, {1, 4, 1, 4}}) {
    for (const auto& [core, ranks] : load_of(c.cores, c.ranks, c.threads))
      EXPECT_EQ(ranks, c.ranks_of_a_core) << core;
  }
}

TEST(DivideHost, AdjacentRanksTakeDifferentCoresWhereRanksOutnumberCores) {
  const HostPlacement first = divide_host({first_cores(2), 8, 0}, 0, 2, 0, 8, 0);
  const HostPlacement second = divide_host({first_cores(2), 8, 1}, 0, 2, 1, 8, 0);
  EXPECT_EQ(std::ssize(first.on), 1);
  EXPECT_NE(first.on, second.on);
}

TEST(DivideHost, AMaskOfOneCoreHoldsAllRanksWithAThreadEach) {
  for (int rank = 0; rank < 4; ++rank) {
    const HostPlacement p = divide_host({{5}, 4, rank}, 0, 8, rank, 4, 0);
    EXPECT_EQ(p.on, std::vector<int>{5});
    EXPECT_EQ(p.threads, 1);
    EXPECT_NE(p.why.find("given 1 of the 8 cores"), std::string::npos) << p.why;
  }
}

TEST(DivideHost, ARankKeepsTheCoresThatItAloneWasGiven) {
  // Bound by Slurm or mpirun: two ranks of four cores each.
  const HostPlacement p = divide_host({first_cores(4, 4), 1, 0}, 0, 8, 1, 2, 0);
  EXPECT_EQ(p.on, std::vector<int>{});  // as it is
  EXPECT_EQ(p.threads, 4);
  // By socket: ranks 2 and 3 of four divide the second.
  const HostPlacement q = divide_host({first_cores(4, 4), 2, 1}, 0, 8, 3, 4, 0);
  EXPECT_EQ(q.on, (std::vector<int>{6, 7}));
  EXPECT_EQ(q.threads, 2);
}

TEST(DivideHost, TheQuotaBoundsThreadsAndIsDividedByTheRanksOfTheHost) {
  const auto threads = [](double quota, int ranks) {
    return divide_host({first_cores(8), ranks, 0}, quota, 8, 0, ranks, 0).threads;
  };
  EXPECT_EQ(threads(0, 1), 8);
  EXPECT_EQ(threads(16, 1), 8);
  EXPECT_EQ(threads(4, 1), 4);
  EXPECT_EQ(threads(2.9, 1), 2);
  EXPECT_EQ(threads(0.5, 1), 1);
  EXPECT_EQ(threads(4, 2), 2);
  EXPECT_EQ(threads(4, 8), 1);
  const HostPlacement p = divide_host({first_cores(8), 2, 0}, 1.5, 8, 0, 2, 0);
  EXPECT_NE(p.why.find("quota is 1.5 CPUs for the 2 ranks"), std::string::npos) << p.why;
  EXPECT_EQ(p.on, first_cores(4));  // which cores, a quota does not say
}

TEST(DivideHost, TheExperimentsThreadsComeFirstButNotItsCores) {
  EXPECT_EQ(divide_host({first_cores(4), 1, 0}, 0, 4, 0, 1, 3).threads, 3);
  const HostPlacement p = divide_host({{1}, 2, 0}, 0, 4, 0, 2, 2);
  EXPECT_EQ(p.threads, 2);
  EXPECT_EQ(p.on, std::vector<int>{1});
  EXPECT_NE(p.why.find("parallel.num_threads 2 is obeyed"), std::string::npos) << p.why;
  EXPECT_EQ(divide_host({first_cores(4), 1, 0}, 0, 4, 0, 1, 4).why, "");
  EXPECT_EQ(divide_host({first_cores(4), 1, 0}, 0, 4, 0, 1, 1000).why,
            "its host has 4 cores for 1 rank; parallel.num_threads 1000 is obeyed, but 4 would fit");
}

std::vector<int> bound_to() {
  cpu_set_t mine;
  CPU_ZERO(&mine);
  EXPECT_EQ(sched_getaffinity(0, sizeof(mine), &mine), 0);
  std::vector<int> cores;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &mine)) cores.push_back(i);
  }
  return cores;
}

TEST(PlaceRankOnHost, BindsThisProcessAndNeverBeyondItsStart) {
  const std::vector<int> before = bound_to();
  const auto back = [&] {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int core : before) CPU_SET(core, &set);
    sched_setaffinity(0, sizeof(set), &set);
  };
  static_cast<void>(place_rank_on_host({before, 1, 0}, 0, 1, 0));
  EXPECT_EQ(bound_to(), before);
  const std::vector<int> last{before.back()};
  EXPECT_EQ(place_rank_on_host({last, 1, 0}, 0, 1, 0).threads, 1);
  EXPECT_EQ(bound_to(), last);
  EXPECT_EQ(cores_of_start(), last);  // this test was not started by mpirun
  back();
  const int ranks = 4 * static_cast<int>(before.size());
  static_cast<void>(place_rank_on_host({before, ranks, 1}, 1, ranks, 0));
  EXPECT_EQ(bound_to(), std::vector<int>{before[1 % before.size()]});
  back();
}

}  // namespace
}  // namespace pesc
