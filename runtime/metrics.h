// The metrics of a run: one JSON object per step in metrics.jsonl, and a live progress line.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "runtime/metrics/line_file.h"

namespace pesc {

struct StepMetrics {
  int64_t step = 0;      // 1 at the first
  int64_t steps = 0;     // of the run
  double loss = 0;       // nats per supervised token of the global batch
  double aux_loss = 0;   // mean over layers and micro-batches; 1 when balanced
  double grad_norm = 0;  // before clipping
  double lr = 0;
  double tokens = 0;
  double supervised = 0;
  double fill_rate = 0;      // tokens over rows * data.max_seq_length
  double seconds = 0;        // of the step
  double flops = 0;          // training_flops of the global batch
  double fp8_flops = 0;      // of them, those of frozen linears that are multiplied in FP8
  double sol_seconds = 0;    // flops over the measured GEMM rates of all ranks: the speed of light
  double peak_seconds = 0;   // flops over the data sheets' FLOP/s of all GPUs, for MFU; 0: not known
  int64_t bytes_sent = 0;    // payload of rank 0 in this step
  int64_t memory_bytes = 0;  // in use on rank 0's GPU, or by its process, after the step; 0: not known
  int dispatch_rounds = 1;
  int retries = 0;         // recomputations because of a non-finite loss or gradient, or a loss spike
  bool skipped = false;    // the recomputation gave the same; the weights were not updated
  bool nonfinite = false;  // in the first computation
  bool spike = false;      // in the last computation
  std::vector<std::vector<double>> expert_share;         // [layers][experts], each layer sums to 1
  std::map<std::string, std::vector<double>> tag_share;  // dataset tag -> [experts] over all layers
  std::map<std::string, double> tag_tokens;
};
[[nodiscard]] nlohmann::json to_json(const StepMetrics& m);
// "step 12/300  loss 2.3456  aux loss 1.02  grad 0.51  23.1k tok/s  41% SOL  27% MFU  1:23 left"; without MFU
// where the peak is not known.
[[nodiscard]] std::string progress_line(const StepMetrics& m, double seconds_per_step);

// ", MFU 0.54"; empty for 0, which is not known.
[[nodiscard]] std::string mfu_text(double mfu);

// The metrics file of one run, across restarts; only rank 0 writes it. Every record has the step that it is
// about, as `launch` the launch that measured it, and as `time` when (seconds since 1970). A restart keeps the
// earlier records. Its first record ({"kind": "launch"}) has the step from which it continues; a reader must
// drop earlier records of later steps.
//
// A failed write (disk full) does not end the run: the file keeps whole lines only, up to 16 MiB of new
// records wait in memory and are written as soon as there is room, and the log has an error.
class MetricsLog {
 public:
  MetricsLog(const std::string& path, uint64_t launch);  // throws IoError when it cannot be opened
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;
  void write(nlohmann::json record);
  // Calls `call` with every line that write() is given from now on, its newline included.
  void on_record(std::function<void(const std::string& line)> call);

 private:
  LineFile file_;
  uint64_t launch_;
  std::function<void(const std::string&)> on_record_;
  std::deque<std::string> waiting_;  // lines
  size_t waiting_bytes_ = 0;
  int64_t dropped_ = 0;
  bool told_ = false;
};

// The total eval loss of this step by the run's records at `path`, evaluated after the step was last
// computed. Nothing where it is not in them, or there is no such file.
[[nodiscard]] std::optional<double> eval_loss_of_step(const std::string& path, int64_t step);

}  // namespace pesc
