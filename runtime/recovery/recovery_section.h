// The limits of a run, as the experiment's `recovery` section gives them.
#pragma once

#include <cstdint>

namespace pesc {

// Limits in seconds.
struct RecoverySection {
  double step_limit = 0;  // 0: learned
  double setup_limit = 1800, checkpoint_limit = 600, eval_limit = 1800;
  int64_t max_restarts = 3;
  double stop_limit = 600;
  bool smaller_layout = false;
  double host_wait = 600;
  double longest_pause = 60;
};

}  // namespace pesc
