// Fault points, heartbeats, causes of death, and the limits that a rank's watch sets.
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>
#include <utility>

#include "ops/core/check.h"
#include "runtime/recovery/rank_watch.h"

namespace pesc {
namespace {

FaultPoint parsed(const std::string& text) {
  FaultPoint p;
  EXPECT_EQ(parse_fault(text, p), "");
  return p;
}

class RecoveryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "recovery-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    run_dir_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(run_dir_); }
  std::string run_dir_;
};

TEST(Faults, AFaultIsReadFromItsText) {
  const FaultPoint p = parsed("step=7,rank=2,section=checkpoint,action=stop,always");
  EXPECT_EQ(p.step, 7);
  EXPECT_EQ(p.rank, 2);
  EXPECT_EQ(p.section, Section::kCheckpoint);
  EXPECT_EQ(p.action, FaultAction::kStop);
  EXPECT_TRUE(p.always);
  const FaultPoint q = parsed("rank=1 action=nan");
  EXPECT_EQ(q.step, -1);
  EXPECT_EQ(q.section, Section::kStep);
  EXPECT_FALSE(q.always);
}

TEST(Faults, RefusedWithTheWordThatIsWrong) {
  FaultPoint p;
  EXPECT_NE(parse_fault("step=7", p).find("no action"), std::string::npos);
  EXPECT_NE(parse_fault("step=x,action=kill", p).find("'step=x'"), std::string::npos);
  EXPECT_NE(parse_fault("step=-3,action=kill", p).find("'step=-3'"), std::string::npos);
  EXPECT_NE(parse_fault("action=explode", p).find("'action=explode'"), std::string::npos);
  EXPECT_NE(parse_fault("sections=step,action=kill", p).find("'sections=step'"), std::string::npos);
  EXPECT_NE(parse_fault("section=eval,action=nan", p).find("nan needs"), std::string::npos);
}

TEST(Faults, DueOnceAtTheirStepSectionAndRank) {
  FaultPoints points({parsed("step=3,rank=1,action=throw"), parsed("step=5,rank=1,action=nan")}, 1, 1);
  EXPECT_EQ(points.reach(Section::kStep, 2), InjectedFault::kNone);
  EXPECT_EQ(points.reach(Section::kCheckpoint, 3), InjectedFault::kNone);
  EXPECT_THROW(points.reach(Section::kStep, 3), InternalError);
  EXPECT_EQ(points.reach(Section::kStep, 3), InjectedFault::kNone);
  EXPECT_EQ(points.reach(Section::kStep, 5), InjectedFault::kNanGradient);
  EXPECT_EQ(points.reach(Section::kStep, 5), InjectedFault::kNone);
  FaultPoints other({parsed("step=3,rank=1,action=throw")}, 0, 1);
  EXPECT_EQ(other.reach(Section::kStep, 3), InjectedFault::kNone);
}

TEST(Faults, EachInjectedFaultIsDistinct) {
  for (const auto& [name, poison] : {std::pair{"nan", InjectedFault::kNanGradient},
                                     {"inf", InjectedFault::kInfGradient},
                                     {"nan_loss", InjectedFault::kNanLoss},
                                     {"inf_loss", InjectedFault::kInfLoss}}) {
    FaultPoints points({parsed(str_cat("step=2,action=", name))}, 0, 1);
    EXPECT_EQ(points.reach(Section::kStep, 2), poison) << name;
    FaultPoint p;
    EXPECT_NE(parse_fault(str_cat("section=checkpoint,action=", name), p).find("needs section=step"),
              std::string::npos);
  }
}

TEST(Faults, InLaterLaunchesOnlyThoseThatAreMeantAlways) {
  FaultPoints later({parsed("action=nan")}, 0, 2);
  EXPECT_EQ(later.reach(Section::kStep, 1), InjectedFault::kNone);
  FaultPoints always({parsed("action=nan,always")}, 0, 2);
  EXPECT_EQ(always.reach(Section::kStep, 1), InjectedFault::kNanGradient);
  EXPECT_EQ(always.reach(Section::kStep, 1), InjectedFault::kNanGradient);
}

TEST_F(RecoveryTest, HeartbeatsComeBackAsWrittenAndOnlyThoseOfTheLaunch) {
  HeartbeatFile zero(run_dir_, 0), one(run_dir_, 1);
  zero.write({7, 0, "node1", 4711, 100000, Section::kCheckpoint, 1234567, 12.5});
  zero.write({7, 0, "n", 4711, 101, Section::kStep, 12, 10});  // shorter: nothing of the first is left
  one.write({6, 1, "node1", 4712, 3, Section::kEval, 2, 1});
  const auto found = read_heartbeats(run_dir_, 2, 7);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].rank, 0);
  EXPECT_EQ(found[0].host, "n");
  EXPECT_EQ(found[0].pid, 4711);
  EXPECT_EQ(found[0].count, 101U);
  EXPECT_EQ(found[0].section, Section::kStep);
  EXPECT_EQ(found[0].step, 12);
  EXPECT_EQ(found[0].limit, 10);
}

TEST_F(RecoveryTest, AHeartbeatThatCannotBeWrittenIsAnError) {
  std::ofstream(run_dir_ + "/heartbeats") << "no directory";
  EXPECT_THROW(HeartbeatFile(run_dir_, 0), IoError);
  RankWatch watch(0, 1, {});
  EXPECT_THROW(watch.report_to(run_dir_, 1, {}), IoError);
  std::filesystem::remove(run_dir_ + "/heartbeats");
  std::filesystem::create_directories(run_dir_ + "/heartbeats");
  std::filesystem::create_symlink("/dev/full", run_dir_ + "/heartbeats/rank-0");
  EXPECT_THROW(HeartbeatFile(run_dir_, 0), IoError);  // a link is not followed
  EXPECT_NO_THROW(HeartbeatFile(run_dir_, 1));
  EXPECT_EQ(std::filesystem::file_size(run_dir_ + "/heartbeats/rank-1"), 256U);
  EXPECT_TRUE(read_heartbeats(run_dir_, 2, 0).empty());
}

TEST_F(RecoveryTest, DamagedFilesAreNotSeen) {
  std::filesystem::create_directories(run_dir_ + "/heartbeats");
  std::filesystem::create_directories(run_dir_ + "/deaths");
  std::ofstream(run_dir_ + "/heartbeats/rank-0") << "launch 7 rank 0 host";
  std::ofstream(run_dir_ + "/heartbeats/rank-1") << std::string(300, '\0');
  std::ofstream(run_dir_ + "/deaths/launch-7-rank-0") << "{\"rank\": 0, \"ho";
  std::ofstream(run_dir_ + "/deaths/launch-7-rank-1") << "[1]";
  EXPECT_TRUE(read_heartbeats(run_dir_, 2, 7).empty());
  EXPECT_TRUE(read_deaths(run_dir_, 2, 7).empty());
}

TEST_F(RecoveryTest, TheWatchReportsWhereItIsAndWhyItEnds) {
  std::optional<double> wait;
  RankWatch watch(3, 4, [&](double seconds) { wait = seconds; });
  RecoverySection limits;
  limits.setup_limit = 100;
  limits.checkpoint_limit = 30;
  watch.start(limits);
  EXPECT_EQ(wait, 200);
  watch.died(70, "before it has a directory: not written, not an error");
  watch.report_to(run_dir_, 5, {});
  watch.enter(Section::kCheckpoint, 41);
  EXPECT_EQ(wait, 60);
  const auto found = read_heartbeats(run_dir_, 4, 5);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].rank, 3);
  EXPECT_EQ(found[0].pid, ::getpid());
  EXPECT_EQ(found[0].step, 41);
  EXPECT_EQ(found[0].limit, 30);
  watch.died(74, "disk full \xff");
  const auto deaths = read_deaths(run_dir_, 4, 5);
  ASSERT_EQ(deaths.size(), 1U);
  EXPECT_EQ(deaths[0].rank, 3);
  EXPECT_EQ(deaths[0].section, Section::kCheckpoint);
  EXPECT_EQ(deaths[0].step, 41);
  EXPECT_EQ(deaths[0].exit_code, 74);
  EXPECT_TRUE(deaths[0].error.starts_with("disk full"));
}

TEST_F(RecoveryTest, TheLimitOfAStepIsLearnedUnlessItIsGiven) {
  double wait = 0;
  RankWatch watch(0, 1, [&](double seconds) { wait = seconds; });
  RecoverySection limits;
  limits.setup_limit = 100;
  watch.start(limits);
  watch.enter(Section::kStep, 0);
  EXPECT_EQ(wait, 2 * 100);  // the first step may set things up
  watch.step_took(50);
  watch.step_took(4);
  watch.enter(Section::kStep, 2);
  EXPECT_EQ(wait, 2 * 5 * 4);
  RankWatch quick(0, 1, [&](double seconds) { wait = seconds; });
  quick.start(limits);
  for (int i = 0; i < 3; ++i) quick.step_took(0.01);
  quick.enter(Section::kStep, 3);
  EXPECT_EQ(wait, 2 * 8);
  limits.step_limit = 3;
  RankWatch given(0, 1, [&](double seconds) { wait = seconds; });
  given.start(limits);
  given.enter(Section::kStep, 0);
  EXPECT_EQ(wait, 2 * 3);
}

TEST_F(RecoveryTest, ARankThatHangsOutsideOfCollectivesEndsItself) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        RankWatch watch(0, 1, {});
        RecoverySection limits;
        limits.setup_limit = 0.2;
        watch.start(limits);
        std::this_thread::sleep_for(std::chrono::seconds(60));
      },
      ::testing::ExitedWithCode(76), "rank 0: no progress in section setup for 0.6 s after step 0");
}

}  // namespace
}  // namespace pesc
