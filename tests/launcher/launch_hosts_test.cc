#include "launcher/launch_hosts.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "ops/core/check.h"

namespace pesc {
namespace {

ExperimentConfig experiment(int tp, int ep, int64_t experts, bool smaller) {
  ExperimentConfig c;
  c.pesc.mode = TrainMode::kPesc;
  c.pesc.moe.num_experts = experts;
  c.parallel.tp = tp;
  c.parallel.ep = ep;
  c.recovery.smaller_layout = smaller;
  return c;
}

TEST(PlaceRanks, HostsThatAllAnswerKeepTheWholeLayout) {
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

TEST(HostHealth, TwoLaunchesInARowThatDiedThereAndNowhereElse) {
  std::vector<Host> hosts{{"a", 2, ""}, {"b.cluster", 2, ""}, {"c", 2, ""}};
  const auto failing = [&] {
    std::string names;
    for (const Host& h : hosts) names += h.suspect.empty() ? "" : h.name;
    return names;
  };
  HostHealth blame;
  for (const std::set<std::string>& dead_on :
       std::vector<std::set<std::string>>{{"b"}, {"a", "b"}, {"b"}, {"a"}, {"b"}, {}, {""}, {""}, {"b"}}) {
    EXPECT_FALSE(blame.launch_ended(dead_on, hosts));
    EXPECT_EQ(failing(), "");
  }
  blame.forget();  // a new checkpoint
  EXPECT_FALSE(blame.launch_ended({"b"}, hosts));
  EXPECT_EQ(failing(), "");
  EXPECT_TRUE(blame.launch_ended({"b"}, hosts));
  EXPECT_EQ(failing(), "b.cluster");
  EXPECT_FALSE(blame.launch_ended({"b"}, hosts));  // known already
  EXPECT_NE(why_left_out(hosts, {"b.cluster"}).find("b.cluster (3 launches in a row died there"),
            std::string::npos);
}

TEST(PlaceRanks, SuspectHostsAreLeftOutWhereTheOthersSuffice) {
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
  hosts[0].unreachable = "dead";  // nothing goes without b and a
  const auto rest = place_ranks(hosts, 4, experiment(2, 4, 8, false));
  ASSERT_TRUE(rest);
  EXPECT_EQ(names_of(rest->hosts), "b, c");
  EXPECT_EQ(rest->left_out, std::vector<std::string>{"a"});
}

TEST(CheckHost, RefusesWhatIsNoMark) {
  for (const char* mark : {"", "-", "--", "a-", "a-b", "a-b-c", "/a-b-", "x-y-"})
    EXPECT_THROW(LaunchMark{std::string(mark)}, UsageError) << mark;
  EXPECT_EQ(LaunchMark{std::string("fd00-2a-")}.run(), "fd00-2a-");
  EXPECT_THROW(LaunchMark("fd00-2a-", "tmp"), UsageError);
  EXPECT_EQ(LaunchMark("fd00-2a-", "/scratch").session_directory(), "/scratch/pesc-fd00-2a-0");
}

TEST(TemporaryFolder, IsTmpdirOrTmp) {
  const char* before = std::getenv("TMPDIR");
  const std::string kept = before == nullptr ? "" : before;
  ::unsetenv("TMPDIR");
  EXPECT_EQ(temporary_folder(), "/tmp");
  for (const auto& [told, path] :
       std::vector<std::pair<const char*, std::string>>{{"", "/tmp"},
                                                        {"/var/tmp/", "/var/tmp"},
                                                        {"/a/../b", "/b"},
                                                        {"x", std::filesystem::current_path() / "x"}}) {
    ::setenv("TMPDIR", told, 1);
    EXPECT_EQ(temporary_folder(), path) << told;
  }
  if (before == nullptr) {
    ::unsetenv("TMPDIR");
  } else {
    ::setenv("TMPDIR", kept.c_str(), 1);
  }
}

// Of what a daemon is told to remove, only what is ours goes.
TEST(RemoveDirectories, TakesOnlyNamesOfLaunches) {
  const std::filesystem::path folder = testing::TempDir() + "/pesc-remove-" + std::to_string(::getpid());
  const auto make = [&](const std::string& name) {
    std::filesystem::create_directories(folder / name);
    return (folder / name).string();
  };
  const std::string ours = make("pesc-fd00-2a-3"), other = make("pesc-fd00-notes"), strange = make("data");
  for (const std::string& path : {ours, other, strange, folder.string() + "/pesc-fd00-2a-4"})
    LaunchMark::remove_directories(path);
  EXPECT_FALSE(std::filesystem::exists(ours));
  EXPECT_TRUE(std::filesystem::exists(other));
  EXPECT_TRUE(std::filesystem::exists(strange));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace pesc
