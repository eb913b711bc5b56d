// What a run says of itself: one JSON object per step in metrics.jsonl, and a live progress line.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace pesc {

struct StepMetrics {
  int64_t step = 0;      // 1 at the first
  int64_t steps = 0;     // of the run
  double loss = 0;       // nats per supervised token of the global batch
  double balance = 0;    // mean over layers and micro-batches; 1 when balanced
  double grad_norm = 0;  // before clipping
  double lr = 0;
  double tokens = 0;
  double supervised = 0;
  double seconds = 0;        // of the step
  double flops = 0;          // training_flops of the global batch
  double light_seconds = 0;  // flops over the measured GEMM rate of all ranks: the speed of light
  int64_t bytes_sent = 0;    // payload of rank 0 in this step
  int exchange_rounds = 1;
  int retries = 0;         // the step was computed again: loss or gradient were not finite, or a spike
  bool skipped = false;    // and again; no weights were updated
  bool nonfinite = false;  // at the first try
  bool spike = false;      // at the last try
  std::vector<std::vector<double>> expert_share;         // [layers][experts], each layer sums to 1
  std::map<std::string, std::vector<double>> tag_share;  // dataset tag -> [experts] over all layers
  std::map<std::string, double> tag_tokens;
};
[[nodiscard]] nlohmann::json to_json(const StepMetrics& m);
// "step 12/300  loss 2.3456  balance 1.02  grad 0.51  23.1k tok/s  41% of light  1:23 left"
[[nodiscard]] std::string progress_line(const StepMetrics& m, double seconds_per_step);

// The file of one run, across restarts, which rank 0 alone writes. Every record carries the step that it is
// about and, as `launch`, the launch that measured it. A new start keeps what was measured before: its first
// record ({"kind": "launch"}) has the step from which it goes on, and for whoever reads the file, earlier
// records of later steps count no more.
//
// A run does not end for its records: where they cannot be written (disk full), whole lines stay in the file,
// the new records wait in memory, up to 16 MiB of them, and follow as soon as there is room; an error in the
// log tells.
class MetricsLog {
 public:
  MetricsLog(const std::string& path, uint64_t launch);  // throws IoError when it cannot be opened
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;
  void write(nlohmann::json record);

 private:
  [[nodiscard]] bool append(const std::string& text) noexcept;

  std::string path_;
  uint64_t launch_;
  int file_ = -1;
  std::deque<std::string> waiting_;  // lines
  size_t waiting_bytes_ = 0;
  int64_t dropped_ = 0;
  bool told_ = false;
};

// Whether the run's records at `path` hold the evaluation of this step, made after the step was last
// computed. False where there is no such file.
[[nodiscard]] bool has_evaluation(const std::string& path, int64_t step);

}  // namespace pesc
