// The hosts of a job: who answers, and which ranks go where.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "launcher/launch_mark.h"
#include "runtime/config/experiment.h"

namespace pesc {

struct Host {
  std::string name;
  int slots = 0;             // 0: the hostfile does not say
  std::string unreachable;   // why it cannot be used; empty: it answers
  std::string suspect = {};  // why it should not be, although it answers; see HostHealth
  int max_slots = 0;         // of the hostfile; 0: it does not say
  int line = 0;              // of the hostfile
  int bare_lines = 0;        // lines that name it without a number
};

// One that mpirun reaches without the network, by the names that read_hostfile gives it.
[[nodiscard]] bool is_this_host(const std::string& name);

// Asks every host by `mpirun --host NAME`, and so through the agent (ssh, or Slurm) and the OMPI_MCA_*
// settings with which ranks are started; writes `unreachable`. Takes at most about 10 s for up to 32 hosts.
// On each host it also removes what an earlier launch left there, and adds a note about it. REQUIRES:
// `program` and `run_dir` exist on all hosts.
[[nodiscard]] std::vector<std::string> look_at_hosts(std::vector<Host>& hosts, const std::string& program,
                                                     const std::string& run_dir, const LaunchMark& mark);
// The same on every node of this Slurm allocation, by one srun, to clean up; Slurm itself knows which nodes
// live.
[[nodiscard]] std::vector<std::string> clean_allocation(int nodes, const std::string& program,
                                                        const std::string& run_dir, const LaunchMark& mark);
// The program of that question, on the host: pesc launch --check-host RUN_DIR MARK TEMPORARY_FOLDER.
int check_host(const std::string& run_dir, const std::string& mark, const std::string& temporary_folder);

// What one launch runs on.
struct Placement {
  int ranks = 0;
  int ep = 1;
  std::vector<Host> hosts;            // that it uses; empty: this host, or Slurm's allocation
  std::vector<std::string> left_out;  // unreachable or suspect hosts
  bool smaller = false;               // than the experiment's layout
};
// All ranks on the hosts that answer, where they have the slots; otherwise, where
// recovery.smaller_layout allows it, as many as there are slots, tp staying and ep falling to the largest
// number that divides experts and ranks. Failing hosts are left out where that is possible without them, and
// else used. Nothing when neither is possible.
[[nodiscard]] std::optional<Placement> place_ranks(const std::vector<Host>& hosts, int ranks,
                                                   const ExperimentConfig& config);

// Finds a host on which ranks die in every launch, although it answers: bad memory, a broken driver.
class HostHealth {
 public:
  // Ranks died on `dead_on` (hosts_of_the_dead). When it is the second launch in a row whose dead were all on
  // the same single host, that one is marked suspect in `hosts`. Returns whether a host was newly marked.
  bool launch_ended(const std::set<std::string>& dead_on, std::vector<Host>& hosts);
  // There was a new checkpoint: the count begins again. Marks stay.
  void forget() { times_ = 0; }

 private:
  std::string suspect_;
  int times_ = 0;
};

// "left, right"; "right (timed out)", also of those left out as suspect.
[[nodiscard]] std::string names_of(const std::vector<Host>& hosts);
[[nodiscard]] std::string unreachable_hosts(const std::vector<Host>& hosts);
[[nodiscard]] std::string why_left_out(const std::vector<Host>& hosts,
                                       const std::vector<std::string>& left_out);

}  // namespace pesc
