// Which checkpoints stand, as the supervisor sees them without reading a tensor: the manifest verifies and
// the files have the sizes that it says. A flipped bit in a tensor is for the ranks to find.
#pragma once

#include <cstdint>
#include <string>

namespace pesc {

// The step of the newest; -1: none.
[[nodiscard]] int64_t newest_checkpoint(const std::string& run_dir);

// Whether launches get anywhere. A checkpoint from before, however high its step, is no progress: it may be
// one that the ranks pass over as damaged.
class Progress {
 public:
  // Launch `generation` has ended. Returns whether it has committed a checkpoint newer than all that launches
  // before it have.
  [[nodiscard]] bool launch_ended(const std::string& run_dir, uint64_t generation);

 private:
  int64_t best_ = -1;
};

}  // namespace pesc
