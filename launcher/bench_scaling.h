// pesc bench --scaling: how the training step scales over the ranks of one host. The points stand in one table;
// each is a `pesc bench` of its own under mpirun, started one after the other.
#pragma once

#include <span>
#include <string>

#include "launcher/command_line.h"

namespace pesc {

struct ScalingPoint {
  const char* name;  // "7b-d64-dp8"
  const char* shape;
  int adapter_dim;
  int ranks, tp, ep;
  // The global batch, in batches of the experiment (which is that of one rank). Weak scaling: as many as ranks.
  int batches;
  const char* against;     // the point whose tokens a second and rank are an efficiency of 1; empty: itself
  bool recompute = false;  // recompute_granularity FULL
};

// At most 20, a point behind the one that it is compared with.
[[nodiscard]] std::span<const ScalingPoint> scaling_points();
// Nullptr for a name that is none.
[[nodiscard]] const ScalingPoint* find_scaling_point(const std::string& name);

// Tokens a second and rank over those of the other point.
[[nodiscard]] double scaling_efficiency(const ScalingPoint& point, double tokens_per_second,
                                        const ScalingPoint& against, double tokens_per_second_against);

// Runs the points that --scaling_points selects and for which there are enough GPUs (on the CPU: all), prints
// tables, and writes --out after each point. Points that --out already has are not run again. Started without
// mpirun. Returns the exit code of the first point that failed.
int run_bench_scaling(const CommandLine& command);

}  // namespace pesc
