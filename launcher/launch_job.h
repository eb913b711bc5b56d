// One launch of the job: runs mpirun and watches it from its start to its end.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "launcher/launch_hosts.h"
#include "launcher/launch_mark.h"
#include "launcher/launch_options.h"
#include "launcher/launch_signals.h"
#include "runtime/config/experiment.h"
#include "runtime/recovery/rank_files.h"

namespace pesc {

struct JobEnd {
  int code = 0;        // of the job; 76 when it was ended for hanging, 130 by a second signal to stop
  std::string status;  // "exit code 70", "killed by signal 9"
  std::string hang;    // what hung; empty: nothing
  // Of each rank's stderr and of mpirun's, kMpirunItself.
  std::map<int, std::deque<std::string>> last_lines;
  std::vector<Heartbeat> heartbeats;  // the last of each rank
  std::vector<Death> deaths;
  double ended_unix = 0;      // when, in seconds since 1970
  double seconds = 0;         // from start to end
  double first_step_at = -1;  // seconds after the start; -1: no step was reached
  double progress_at = 0;     // likewise: the last sign of progress of any rank
  double noticed_at = 0;      // likewise: mpirun had ended, or the hang was seen
};

// Starts mpirun and waits until all of it has ended. What the ranks print goes on to stdout and stderr.
[[nodiscard]] JobEnd run_job(const LaunchOptions& options, const Placement& placement,
                             const ExperimentConfig& config, uint64_t launch_id, const LaunchMark& mark,
                             StopSignals& signals);

// The words of that mpirun.
[[nodiscard]] std::vector<std::string> mpirun_command(const LaunchOptions& options,
                                                      const Placement& placement, uint64_t launch_id,
                                                      const LaunchMark& mark);

}  // namespace pesc
