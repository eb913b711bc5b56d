// Slurm's environment variables, and whether they belong to the job that this process is in. A shell that
// outlived its job, a container, or a settings file may carry those of another job, and mpirun would use
// them.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace pesc {

struct SlurmJob {
  int nodes = 0;          // of the allocation; 0: this is no Slurm job
  int tasks = 0;          // SLURM_NTASKS; 0: not said
  int slots = 0;          // that mpirun finds there: the sum of SLURM_TASKS_PER_NODE
  int copies = 1;         // of this program, that srun started
  std::string left_over;  // the variable that names a job, and why it is not believed; empty: there is none
};

// "n[1-3,07],m" as its names; nothing where it is no list of nodes. At most a million.
[[nodiscard]] std::optional<std::vector<std::string>> expand_node_list(const std::string& list);

// The value of a variable; nullptr: it is not set.
using Variables = std::function<const char*(const char* name)>;
// A job's state from Slurm: "" when Slurm knows no such running or pending job, nothing when Slurm does not
// answer.
using AskSlurm = std::function<std::optional<std::string>(const std::string& job)>;
// Reads the job of the variables. It counts only if the variables are consistent with each other, with
// Slurm's answer and with the host; otherwise `left_over` says why not.
[[nodiscard]] SlurmJob read_slurm_job(const Variables& variable, const std::string& host,
                                      const AskSlurm& ask);

// Asks squeue, for at most 5 s.
[[nodiscard]] std::optional<std::string> ask_squeue(const std::string& job);
// Takes all of Slurm's variables out of this process's environment.
void forget_slurm();

}  // namespace pesc
