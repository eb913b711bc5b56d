// Faults that tests cause at a chosen step, rank and section of a run (debug.fault of the experiment).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pesc {

// Where a rank is; each has its own limit of time.
enum class Section { kSetup, kStep, kCheckpoint, kEval };
[[nodiscard]] const char* section_name(Section s);

enum class FaultAction {
  kKill,   // SIGKILL to itself
  kStop,   // SIGSTOP to itself
  kThrow,  // InternalError
  kNan,    // from here on the caller poisons its numbers
  kInf,
  kNanLoss,
  kInfLoss,
};

// What the caller does to its numbers of a step.
enum class Poison { kNone, kNanGradient, kInfGradient, kNanLoss, kInfLoss };

struct FaultPoint {
  int64_t step = -1;  // -1: any. kStep: the step being made, 1 at the first; elsewhere: the steps done
  int rank = 0;
  Section section = Section::kStep;
  FaultAction action = FaultAction::kKill;
  bool always = false;  // each time and in every launch, not once in the first
};

// "step=7,rank=2,section=step,action=kill[,always]". Returns what is wrong with `text`; empty when nothing.
[[nodiscard]] std::string parse_fault(const std::string& text, FaultPoint& out);

// The faults of one rank in one launch.
class FaultPoints {
 public:
  FaultPoints() = default;
  FaultPoints(std::vector<FaultPoint> points, int rank, uint64_t generation);

  // Does what is due here, or returns what the caller has to do.
  Poison reach(Section section, int64_t step) {
    return points_.empty() ? Poison::kNone : fire(section, step);
  }

 private:
  Poison fire(Section section, int64_t step);
  std::vector<FaultPoint> points_;
};

}  // namespace pesc
