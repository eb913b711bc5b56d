#include "launcher/launch_hosts.h"

#include <gtest/gtest.h>

#include <fstream>

#include "ops/core/check.h"

namespace pesc {
namespace {

std::string write_hostfile(const std::string& text) {
  std::string path = testing::TempDir() + "/hostfile";
  std::ofstream(path) << text;
  return path;
}

ExperimentConfig experiment(int tp, int ep, int64_t experts, bool smaller) {
  ExperimentConfig c;
  c.pesc.mode = TrainMode::kPesc;
  c.pesc.moe.experts = experts;
  c.parallel.tp = tp;
  c.parallel.ep = ep;
  c.recovery.smaller_layout = smaller;
  return c;
}

TEST(Hostfile, IsOpenMpis) {
  const auto hosts = read_hostfile(write_hostfile("# two\na slots=4 max_slots=8\n\nb\na slots=2 # again\n"));
  ASSERT_EQ(hosts.size(), 2u);
  EXPECT_EQ(hosts[0].name, "a");
  EXPECT_EQ(hosts[0].slots, 6);
  EXPECT_EQ(hosts[1].slots, 0);
  EXPECT_THROW(static_cast<void>(read_hostfile(write_hostfile("a slots=many\n"))), UsageError);
  EXPECT_THROW(static_cast<void>(read_hostfile(write_hostfile("# none\n"))), UsageError);
  EXPECT_THROW(static_cast<void>(read_hostfile("/nowhere")), UsageError);
}

TEST(PlaceRanks, AllAnswer) {
  const auto p = place_ranks({{"a", 0, ""}, {"b", 0, ""}}, 4, experiment(2, 4, 8, false));
  ASSERT_TRUE(p);
  EXPECT_EQ(p->ranks, 4);
  EXPECT_EQ(p->hosts.size(), 2u);
  EXPECT_FALSE(p->smaller);
}

TEST(PlaceRanks, SpareHostsKeepTheLayout) {
  const auto p = place_ranks({{"a", 2, ""}, {"b", 2, "dead"}, {"c", 2, ""}}, 4, experiment(2, 4, 8, false));
  ASSERT_TRUE(p);
  EXPECT_EQ(p->ranks, 4);
  EXPECT_EQ(p->ep, 4);
  EXPECT_FALSE(p->smaller);
  EXPECT_EQ(p->left_out, std::vector<std::string>{"b"});
  EXPECT_EQ(names_of(p->hosts), "a, c");
}

TEST(PlaceRanks, SmallerOnlyWhereAllowed) {
  const std::vector<Host> hosts{{"a", 4, ""}, {"b", 4, "dead"}, {"c", 3, ""}};
  EXPECT_FALSE(place_ranks(hosts, 8, experiment(2, 8, 8, false)));
  const auto p = place_ranks(hosts, 8, experiment(2, 8, 8, true));
  ASSERT_TRUE(p);
  EXPECT_TRUE(p->smaller);
  EXPECT_EQ(p->ranks, 6);                                           // of seven slots, with tp 2
  EXPECT_EQ(p->ep, 2);                                              // divides 6 ranks and 8 experts
  EXPECT_FALSE(place_ranks(hosts, 16, experiment(8, 8, 8, true)));  // tp does not fit
}

TEST(PlaceRanks, UnknownSlotsCannotBeCounted) {
  EXPECT_FALSE(place_ranks({{"a", 2, ""}, {"b", 0, "dead"}}, 2, experiment(1, 1, 8, true)));
  EXPECT_FALSE(place_ranks({{"a", 2, "dead"}}, 2, experiment(1, 1, 8, true)));
}

TEST(HostBlame, TwoLaunchesInARowThatDiedThereAndNowhereElse) {
  std::vector<Host> hosts{{"a", 2, ""}, {"b.cluster", 2, ""}, {"c", 2, ""}};
  const auto failing = [&] {
    std::string names;
    for (const Host& h : hosts) names += h.failing.empty() ? "" : h.name;
    return names;
  };
  HostBlame blame;
  for (const std::set<std::string>& dead_on :
       std::vector<std::set<std::string>>{{"b"}, {"a", "b"}, {"b"}, {"a"}, {"b"}, {}, {""}, {""}, {"b"}}) {
    blame.launch_ended(dead_on, hosts);
    EXPECT_EQ(failing(), "");
  }
  blame.forget();  // a new checkpoint
  blame.launch_ended({"b"}, hosts);
  EXPECT_EQ(failing(), "");
  blame.launch_ended({"b"}, hosts);
  EXPECT_EQ(failing(), "b.cluster");
  EXPECT_NE(why_left_out(hosts, {"b.cluster"}).find("b.cluster (2 launches in a row died there"),
            std::string::npos);
}

TEST(PlaceRanks, FailingHostsAreLeftOutWhereItGoesWithoutThem) {
  std::vector<Host> hosts{{"a", 2, ""}, {"b", 2, "", "2 launches"}, {"c", 2, ""}};
  const auto spare = place_ranks(hosts, 4, experiment(2, 4, 8, false));
  ASSERT_TRUE(spare);
  EXPECT_EQ(spare->left_out, std::vector<std::string>{"b"});
  const auto smaller = place_ranks(hosts, 6, experiment(2, 2, 8, true));
  ASSERT_TRUE(smaller);
  EXPECT_EQ(smaller->ranks, 4);
  const auto needed = place_ranks(hosts, 6, experiment(2, 2, 8, false));
  ASSERT_TRUE(needed);
  EXPECT_EQ(needed->left_out, std::vector<std::string>{});
  hosts[0].silent = "dead";  // nothing goes without b and a
  const auto rest = place_ranks(hosts, 4, experiment(2, 4, 8, false));
  ASSERT_TRUE(rest);
  EXPECT_EQ(names_of(rest->hosts), "b, c");
  EXPECT_EQ(rest->left_out, std::vector<std::string>{"a"});
}

TEST(CheckHost, RefusesWhatIsNoMark) {
  for (const char* mark : {"", "-", "--", "a-", "a-b", "a-b-c", "/a-b-", "x-y-"})
    EXPECT_THROW(LaunchMark{std::string(mark)}, UsageError) << mark;
  EXPECT_EQ(LaunchMark{std::string("fd00-2a-")}.run(), "fd00-2a-");
}

}  // namespace
}  // namespace pesc
