// Settings that are valid but have no effect, or less than they say, in a run of so many steps and ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/config/experiment.h"

namespace pesc {

struct RunLength {
  int64_t steps = 0;       // of the whole run
  int64_t epoch_rows = 0;  // rows of an epoch
  int ranks = 1;
};

// One text a setting, each with the place where it was set: "e.textproto:9: checkpoint.save_steps is 50, but
// the run has 10 steps: ...". Of a fault on a rank, in a section or at a step that there is not; of intervals
// beyond the end; of a batch beyond an epoch. They are warnings, not errors, because one file may serve runs
// of several lengths. The caller prints them.
[[nodiscard]] std::vector<std::string> unreached_settings(const ExperimentConfig& config,
                                                          const RunLength& run);

}  // namespace pesc
