// The words of `pesc launch`, and what they and the environment say of where it runs.
#pragma once

#include <string>
#include <vector>

#include "launcher/command_line.h"
#include "launcher/launch_hosts.h"

namespace pesc {

struct LaunchOptions {
  int ranks = 0;
  std::string hostfile;                 // empty: this host, or the Slurm allocation
  std::vector<Host> hosts;              // of the hostfile
  int slurm_nodes = 0;                  // of the allocation that this runs in; 0: none
  std::string program;                  // ours, which the ranks run
  std::vector<std::string> train_argv;  // "train", "--config", ...
  CommandLine train;                    // the same, parsed
};
// Says of variables of Slurm that are left over, and removes them from the environment. Throws UsageError.
[[nodiscard]] LaunchOptions parse_launch(int argc, char** argv);

// How many of its ranks may come to be on this host.
[[nodiscard]] int ranks_of_this_host(const LaunchOptions& options);

}  // namespace pesc
