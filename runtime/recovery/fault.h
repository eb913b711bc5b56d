// Injected faults for tests, at a chosen step, rank and section of a run (debug.fault of the experiment).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pesc {

// The part of the run that a rank is in. Each has its own time limit.
enum class Section { kSetup, kStep, kCheckpoint, kEval };
[[nodiscard]] const char* section_name(Section s);

enum class FaultAction {
  kKill,   // SIGKILL to itself
  kStop,   // SIGSTOP to itself
  kThrow,  // InternalError
  kNan,    // from here on the caller corrupts its own numbers: NaN or infinity in the gradient or the loss
  kInf,
  kNanLoss,
  kInfLoss,
};

// How the caller corrupts the numbers of a step.
enum class InjectedFault { kNone, kNanGradient, kInfGradient, kNanLoss, kInfLoss };

struct FaultPoint {
  int64_t step = -1;  // -1: any. kStep: the current step, from 1; elsewhere: the number of steps done
  int rank = 0;
  Section section = Section::kStep;
  FaultAction action = FaultAction::kKill;
  bool always = false;  // in every launch and each time; otherwise once, in the first launch
};

// Parses "step=7,rank=2,section=step,action=kill[,always]". Returns what is wrong with `text`, or an empty
// string.
[[nodiscard]] std::string parse_fault(const std::string& text, FaultPoint& out);

// The faults of one rank in one launch.
class FaultPoints {
 public:
  FaultPoints() = default;
  FaultPoints(std::vector<FaultPoint> points, int rank, uint64_t launch_id);

  // Triggers a fault that is due here, or returns what the caller has to corrupt.
  InjectedFault reach(Section section, int64_t step) {
    return points_.empty() ? InjectedFault::kNone : fire(section, step);
  }

 private:
  InjectedFault fire(Section section, int64_t step);
  std::vector<FaultPoint> points_;
};

}  // namespace pesc
