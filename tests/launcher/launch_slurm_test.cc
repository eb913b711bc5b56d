// Slurm's variables: of which job, and whether they are left over from one that this process is not in.
#include "launcher/launch_slurm.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "launcher/launch_checks.h"
#include "ops/core/check.h"

namespace pesc {
namespace {

using Values = std::map<std::string, std::string>;

Variables variables(const Values& values) {
  return [&values](const char* name) {
    const auto found = values.find(name);
    return found == values.end() ? nullptr : found->second.c_str();
  };
}

AskSlurm says(std::optional<std::string> state) {
  return [state](const std::string&) { return state; };
}

const Values kJob = {{"SLURM_JOB_ID", "7"}, {"SLURM_JOB_NODELIST", "n[1-3]"},  {"SLURM_JOB_NUM_NODES", "3"},
                     {"SLURM_NTASKS", "6"}, {"SLURM_TASKS_PER_NODE", "2(x3)"}, {"SLURMD_NODENAME", "n1"}};

Values with(Values values, const Values& changes) {
  for (const auto& [name, value] : changes) values[name] = value;
  return values;
}
Values without(Values values, const std::string& name) {
  values.erase(name);
  return values;
}

TEST(SlurmNodes, NodeListsAreExpanded) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(expand_node_list("n1").value(), Names{"n1"});
  EXPECT_EQ(expand_node_list("n[1-3],m").value(), (Names{"n1", "n2", "n3", "m"}));
  EXPECT_EQ(expand_node_list("n[08-10,12]-ib").value(), (Names{"n08-ib", "n09-ib", "n10-ib", "n12-ib"}));
  for (const char* wrong :
       {"", "n[1", "n]1", "n[]", "n[a-b]", "n[3-1]", "n[1-2]x[1-2]", "a,,b", "n[1-9999999]"})
    EXPECT_FALSE(expand_node_list(wrong)) << wrong;
}

TEST(SlurmJob, IsBelievedWhereAllAgrees) {
  for (const std::string host : {"n1", "n2.cluster"}) {
    for (const auto& answer : {std::optional<std::string>("RUNNING"), std::optional<std::string>()}) {
      const SlurmJob job = read_slurm_job(variables(kJob), host, says(answer));
      EXPECT_EQ(job.left_over, "");
      EXPECT_EQ(job.nodes, 3);
      EXPECT_EQ(job.tasks, 6);
      EXPECT_EQ(job.copies, 1);
    }
  }
  // salloc's shell on another host, and a node whose name is not its host's.
  EXPECT_EQ(read_slurm_job(variables(without(kJob, "SLURMD_NODENAME")), "login", says("RUNNING")).nodes, 3);
  EXPECT_EQ(read_slurm_job(variables(kJob), "vm", says(std::nullopt)).nodes, 3);
  EXPECT_EQ(read_slurm_job(variables(without(kJob, "SLURM_NTASKS")), "n1", says("RUNNING")).tasks, 0);
}

TEST(SlurmJob, IsNoneWithoutAnId) {
  const SlurmJob job = read_slurm_job(variables(without(kJob, "SLURM_JOB_ID")), "n1", says("RUNNING"));
  EXPECT_EQ(job.nodes, 0);
  EXPECT_EQ(job.left_over, "");
}

TEST(SlurmJob, IsLeftOverWhereSomethingDoesNotAgree) {
  struct Case {
    Values values;
    std::string host;
    std::optional<std::string> state;
    std::string says;
  };
  const std::vector<Case> cases = {
      {{{"SLURM_JOB_ID", "1"}}, "vm", std::nullopt, "SLURM_JOB_ID=1 (SLURM_JOB_NODELIST is not set)"},
      {{{"SLURM_JOBID", "1"}}, "vm", std::nullopt, "SLURM_JOB_NODELIST is not set"},
      {{{"SLURM_JOB_ID", "1"}, {"SLURM_JOB_NUM_NODES", "2"}}, "vm", std::nullopt, "SLURM_JOB_NODELIST"},
      {without(kJob, "SLURM_TASKS_PER_NODE"), "n1", "RUNNING", "SLURM_TASKS_PER_NODE is not set"},
      {with(kJob, {{"SLURM_JOB_ID", "x"}}), "n1", "RUNNING", "no number"},
      {with(kJob, {{"SLURM_JOB_NODELIST", "n[1"}}), "n1", "RUNNING", "no list of nodes"},
      {with(kJob, {{"SLURM_JOB_NUM_NODES", "2"}}), "n1", "RUNNING", "SLURM_JOB_NUM_NODES=2 does not agree"},
      {kJob, "n1", "", "no such job"},
      {without(kJob, "SLURMD_NODENAME"), "vm", std::nullopt, "this host, vm, is not in"},
      {with(kJob, {{"SLURMD_NODENAME", "m"}}), "vm", std::nullopt, "this host, vm, is not in"},
  };
  for (const Case& c : cases) {
    const SlurmJob job = read_slurm_job(variables(c.values), c.host, says(c.state));
    EXPECT_EQ(job.nodes, 0) << c.says;
    EXPECT_EQ(job.tasks, 0) << c.says;
    EXPECT_NE(job.left_over.find(c.says), std::string::npos) << job.left_over;
  }
}

TEST(SlurmJob, SrunMayStartOneCopy) {
  const Values shell = with(kJob, {{"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}});
  const Values ranks = with(kJob, {{"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "4"}});
  EXPECT_NO_THROW(check_one_copy(read_slurm_job(variables(shell), "n1", says("RUNNING"))));
  EXPECT_THROW(check_one_copy(read_slurm_job(variables(ranks), "n1", says("RUNNING"))), UsageError);
}

TEST(ForgetSlurm, LeavesNothingForMpirun) {
  ::setenv("SLURM_JOBID", "1", 1);
  ::setenv("SLURM_TASKS_PER_NODE", "2", 1);
  ::setenv("NOT_SLURM_X", "1", 1);
  forget_slurm();
  EXPECT_EQ(std::getenv("SLURM_JOBID"), nullptr);
  EXPECT_EQ(std::getenv("SLURM_TASKS_PER_NODE"), nullptr);
  EXPECT_NE(std::getenv("NOT_SLURM_X"), nullptr);
  ::unsetenv("NOT_SLURM_X");
}

TEST(InsideALaunch, IsRefusedAndNamesMpirun) {
  for (const Values& values : {Values{{"OMPI_COMM_WORLD_RANK", "0"}}, Values{{"PESC_LAUNCH", "1-2-3"}},
                               Values{{"PMI_RANK", "0"}}, Values{{"PMIX_RANK", "1"}}}) {
    try {
      check_not_inside_a_launch(variables(values));
      ADD_FAILURE() << values.begin()->first;
    } catch (const UsageError& e) {
      EXPECT_NE(std::string(e.what()).find("mpirun"), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find(values.begin()->first), std::string::npos) << e.what();
    }
  }
  EXPECT_NO_THROW(check_not_inside_a_launch(variables({})));
  // The shell of `srun --pty bash`.
  const Values shell{{"PMIX_RANK", "0"}, {"SLURM_PROCID", "0"}};
  EXPECT_NO_THROW(check_not_inside_a_launch(variables(shell)));
}

}  // namespace
}  // namespace pesc
