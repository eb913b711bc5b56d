// What a run directory tells, gathered for a report in one reading of each file.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "runtime/metrics/evaluations_file.h"
#include "runtime/report/expert_history.h"
#include "runtime/report/min_max_curve.h"

namespace pesc {

// Of metrics.jsonl's steps: the key, and what the page calls it.
struct ReportedCurve {
  const char* key;
  const char* title;
  const char* unit;
};
inline constexpr std::array kReportedCurves{
    ReportedCurve{"loss", "Loss", "nats per token"},
    ReportedCurve{"aux_loss", "Aux loss", "1: experts are balanced"},
    ReportedCurve{"grad_norm", "Gradient norm", "before clipping"},
    ReportedCurve{"lr", "Learning rate", ""},
    ReportedCurve{"tokens_per_second", "Throughput", "tokens/s"},
    ReportedCurve{"seconds", "Time of a step", "s"},
    ReportedCurve{"mfu", "MFU", "share of the GPUs' peak"},
    ReportedCurve{"sol_fraction", "Speed of light", "share of the measured GEMM rate"},
    ReportedCurve{"fill_rate", "Fill rate", "share of the rows' tokens"},
    ReportedCurve{"memory_bytes", "Memory", "bytes on rank 0"},
};

// A launch by metrics.jsonl, and how it ended by launches.jsonl, which `pesc launch` writes.
struct ReportedLaunch {
  int64_t launch = 0, from_step = 0, last_step = 0, ranks = 0;
  double began = 0;  // seconds since 1970; 0: not known
  bool ended = false;
  double seconds = 0;
  int64_t exit_code = 0;
  std::string status, error;
};

struct RunData {
  std::string path, label;
  nlohmann::json recipe = nlohmann::json::object();  // name, mode and so on, of the resolved experiment
  std::string config;                                // its text
  std::vector<std::string> notes;                    // what a reader should know of these files

  std::vector<MinMaxCurve> curves;  // as kReportedCurves
  MinMaxCurve imbalance;            // the load of the busiest expert of any layer, 1: as all others
  ExpertHistory experts{0};
  std::map<std::string, std::vector<std::pair<int64_t, double>>> eval_losses;  // "" is all; by step
  std::vector<ReportedLaunch> launches;
  std::vector<std::pair<int64_t, std::string>> marks;  // step, what; the first ones
  int64_t marks_in_all = 0;

  int64_t steps = 0, last_step = 0, recomputed_steps = 0, saves = 0;
  double tokens = 0, supervised = 0, flops = 0, last_loss = 0, tokens_per_second = 0;  // the median
  std::vector<std::pair<std::string, double>> phases;                                  // seconds
  std::vector<Evaluation> evaluations;
};

// Reads the run in `path`. `share`: the part of a page that it may take, in (0, 1]. Throws UsageError for what is
// no run directory or has no metrics, DataError naming file and line for damage, IoError.
[[nodiscard]] RunData read_run(const std::string& path, double share);

}  // namespace pesc
