// The checkpoints as the supervisor sees them, without reading a tensor: the manifest verifies, and the files
// have the sizes that it gives. The ranks find flipped bits in tensors.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "launcher/launch_job.h"

namespace pesc {

// The step of the newest checkpoint; -1: none.
[[nodiscard]] int64_t newest_checkpoint(const std::string& run_dir);

// Whether launches make progress: whether they commit new checkpoints. An old checkpoint of a higher step
// does not count, since the ranks may skip it as damaged.
class Progress {
 public:
  // Launch `launch_id` has ended. Returns whether it has committed a checkpoint newer than all that launches
  // before it have.
  [[nodiscard]] bool launch_ended(const std::string& run_dir, uint64_t launch_id);

 private:
  int64_t best_ = -1;
};

// Finds a repeated failure: the same step of the same section ends with the same internal error (70) or crash
// in two launches in a row. External causes (SIGKILL, a hang, an I/O error) and failures during set-up, which
// has no step, do not count here: recovery.max_restarts limits them, and RepeatedStart finds repeated
// failures to start.
class RepeatedFailure {
 public:
  // A launch has ended. Returns whether it ended as the one before.
  [[nodiscard]] bool launch_ended(const JobEnd& end);
  // There was a new checkpoint.
  void forget() { last_ = {}; }
  // "section step after step 8 ended with exit code 70", of the last launch.
  [[nodiscard]] std::string text() const;

 private:
  struct Failure {
    int code = 0;  // 0: none that counts
    Section section = Section::kSetup;
    int64_t step = 0;
    bool operator==(const Failure&) const = default;
  };
  Failure last_;
};

// Finds a start that fails again: in two launches in a row MPI has ended them before any rank came to its
// first heartbeat, with the same exit code and the same words. That is the surroundings (a setting such as
// OMPI_MCA_pml=ucx where there is no such component), and they stay as they are. An exit code of the ranks'
// own, and a signal that comes from outside, may be chance.
class RepeatedStart {
 public:
  // A launch has ended. Returns whether it ended so, and as the one before.
  [[nodiscard]] bool launch_ended(const JobEnd& end);

 private:
  int code_ = 0;  // 0: it was no such end
  std::set<std::string> words_;
};

}  // namespace pesc
