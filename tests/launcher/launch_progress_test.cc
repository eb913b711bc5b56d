// Which failures come again by themselves, whether a rank ever began, and which steps count.
#include "launcher/launch_progress.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "launcher/launch_process.h"
#include "launcher/launch_report.h"
#include "ops/core/check.h"

namespace pesc {
namespace {

JobEnd failed(int code, Section section, int64_t step) {
  JobEnd end;
  end.code = code;
  Death d;
  d.section = section;
  d.step = step;
  d.exit_code = code;
  end.deaths.push_back(d);
  return end;
}

JobEnd crashed(int code, Section section, int64_t step) {
  JobEnd end;
  end.code = code;
  Heartbeat h;
  h.section = section;
  h.step = step;
  end.heartbeats.push_back(h);
  return end;
}

TEST(RepeatedFailure, IsTheSameStepSectionAndCodeTwiceInARow) {
  RepeatedFailure repeats;
  EXPECT_FALSE(repeats.launch_ended(failed(70, Section::kStep, 8)));
  EXPECT_TRUE(repeats.launch_ended(failed(70, Section::kStep, 8)));
  EXPECT_NE(repeats.text().find("section step after step 8 ended with exit code 70"), std::string::npos);
  EXPECT_FALSE(repeats.launch_ended(failed(70, Section::kStep, 9)));
  EXPECT_FALSE(repeats.launch_ended(failed(70, Section::kEval, 9)));
  EXPECT_FALSE(repeats.launch_ended(crashed(137, Section::kStep, 9)));  // another in between
  EXPECT_FALSE(repeats.launch_ended(failed(70, Section::kEval, 9)));
  repeats.forget();  // a new checkpoint
  EXPECT_FALSE(repeats.launch_ended(failed(70, Section::kEval, 9)));
  EXPECT_FALSE(repeats.launch_ended(crashed(139, Section::kStep, 9)));
  EXPECT_TRUE(repeats.launch_ended(crashed(139, Section::kStep, 9)));
}

TEST(RepeatedFailure, IsNothingThatMayBeChance) {
  for (const JobEnd& end :
       {crashed(137, Section::kStep, 8), failed(76, Section::kStep, 8), failed(74, Section::kCheckpoint, 8),
        failed(70, Section::kSetup, 0), crashed(139, Section::kSetup, 0), JobEnd{}}) {
    RepeatedFailure repeats;
    for (int i = 0; i < 3; ++i) EXPECT_FALSE(repeats.launch_ended(end)) << end.code;
  }
}

// As Open MPI 4.1.4 says it with OMPI_MCA_pml=ucx where there is no such component.
JobEnd without_component(const std::string& pid, int code = 1) {
  JobEnd end;
  end.code = code;
  end.last_lines[kMpirunItself] = {
      "--------------------------------------------------------------------------",
      "No components were able to be opened in the pml framework.",
      "  Host:      vm",
      "  Framework: pml",
      "mpirun detected that one or more processes exited with non-zero status, thus causing",
      "  Process name: [[" + pid + ",1],0]",
      "  Exit code:    1"};
  end.last_lines[0] = {"*** An error occurred in MPI_Init_thread",
                       "*** reported by process [" + pid + "81793,0]", "*** on a NULL communicator"};
  return end;
}

TEST(RepeatedStart, IsTheSameWordsTwiceInARowBeforeAnyHeartbeat) {
  RepeatedStart starts;
  EXPECT_FALSE(starts.launch_ended(without_component("38890")));
  JobEnd other_rank = without_component("1207");  // which rank reports first is chance
  other_rank.last_lines[1] = other_rank.last_lines[0];
  other_rank.last_lines.erase(0);
  other_rank.last_lines[kMpirunItself].pop_front();
  other_rank.last_lines[kMpirunItself].push_back(
      "[vm:4711] 1 more process has sent help message help-mca-base.txt / find-available:none found");
  EXPECT_TRUE(starts.launch_ended(other_rank));
  EXPECT_TRUE(starts.launch_ended(without_component("3")));
  EXPECT_FALSE(starts.launch_ended(without_component("3", 2)));  // another code
  EXPECT_FALSE(starts.launch_ended(crashed(1, Section::kSetup, 0)));
  EXPECT_FALSE(starts.launch_ended(without_component("3", 2)));  // not in a row
  JobEnd silent;
  silent.code = 139;
  RepeatedStart crashes;
  EXPECT_FALSE(crashes.launch_ended(silent));
  EXPECT_TRUE(crashes.launch_ended(silent));
}

TEST(RepeatedStart, IsNothingThatMayBeChance) {
  JobEnd hung = without_component("1");
  hung.hang = "no rank has come to its set-up";
  JobEnd beat = without_component("1");
  beat.heartbeats.emplace_back();
  JobEnd died = without_component("1");
  died.deaths.emplace_back();
  for (const JobEnd& end : {without_component("1", 137), without_component("1", 74),
                            without_component("1", 75), without_component("1", 0), hung, beat, died}) {
    RepeatedStart starts;
    for (int i = 0; i < 3; ++i) EXPECT_FALSE(starts.launch_ended(end)) << end.code;
  }
  RepeatedStart starts;
  JobEnd other = without_component("1");
  other.last_lines.clear();
  other.last_lines[kMpirunItself] = {"ORTE was unable to reliably start one or more daemons."};
  EXPECT_FALSE(starts.launch_ended(without_component("1")));
  EXPECT_FALSE(starts.launch_ended(other));
}

TEST(AdviceOnMpi, NamesTheSettingsOfTheEnvironment) {
  const char* environment[] = {"PATH=/bin", "OMPI_MCA_pml=ucx", "XOMPI_MCA_a=b", "OMPI_MCA_btl=\x1b[31m",
                               nullptr};
  const std::string text = advice_on_mpi(environment);
  EXPECT_NE(text.find("these settings: OMPI_MCA_pml=ucx, OMPI_MCA_btl=\\x1B[31m; unset"), std::string::npos)
      << text;
  const char* nothing[] = {"PATH=/bin", nullptr};
  EXPECT_NE(advice_on_mpi(nothing).find("no OMPI_MCA_ variable is set"), std::string::npos);
}

TEST(RanksBegan, IsFalseWhereMpirunItselfRefuses) {
  JobEnd end;
  end.code = 1;
  end.last_lines[kMpirunItself] = {"There are not enough slots available in the system"};
  EXPECT_FALSE(ranks_began(end));
  JobEnd silent = end;
  silent.last_lines[kMpirunItself].push_back("  Process name: [[38890,1],0]");
  EXPECT_TRUE(ranks_began(silent));
  JobEnd killed = end;
  killed.last_lines[kMpirunItself].push_back(
      "mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 9");
  EXPECT_TRUE(ranks_began(killed));
  JobEnd spoke = end;
  spoke.last_lines[1] = {"pesc: rank 1"};
  EXPECT_TRUE(ranks_began(spoke));
  end.code = 137;
  EXPECT_TRUE(ranks_began(end));
  EXPECT_TRUE(ranks_began(failed(70, Section::kSetup, 0)));
  EXPECT_TRUE(ranks_began(crashed(1, Section::kSetup, 0)));
}

TEST(HasBegun, IsWhatTheRecordsSayOfALaunch) {
  const auto path = std::filesystem::temp_directory_path() / str_cat("pesc-begun-", ::getpid());
  EXPECT_FALSE(has_begun(path, 1));  // no file
  std::ofstream(path) << R"({"kind":"launch","launch":1,"step":0})" << '\n'
                      << R"({"kind":"step","launch":2,"step":1})" << '\n'
                      << R"({"kind":"launch","launch":3,"st)";
  EXPECT_TRUE(has_begun(path, 1));
  EXPECT_FALSE(has_begun(path, 2));
  EXPECT_FALSE(has_begun(path, 3));
  std::filesystem::remove(path);
}

TEST(SecondsThatCount, AreThoseOfTheLastLaunchThatComputedAStep) {
  const auto path = std::filesystem::temp_directory_path() / str_cat("pesc-seconds-", ::getpid());
  {
    std::ofstream out(path);
    out << R"({"kind":"launch","launch":1,"step":0})" << '\n';
    for (int n = 1; n <= 5; ++n) out << R"({"kind":"step","launch":1,"seconds":1,"step":)" << n << "}\n";
    out << "torn\n"
        << R"({"kind":"launch","launch":2,"step":3})" << '\n';
    out << R"({"kind":"step","launch":2,"seconds":10,"step":4})" << '\n';
    out << R"({"launch":2,"saved_step":4,"step":4,"save_stall_seconds":9})" << '\n';
  }
  EXPECT_EQ(seconds_that_count(path, 0), 13);
  EXPECT_EQ(seconds_that_count(path, 2), 11);
  EXPECT_EQ(seconds_that_count(path.string() + "-none", 0), 0);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace pesc
