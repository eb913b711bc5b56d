// The training loop: accumulation, token-weighted loss, aux loss, clipping, AdamW, evaluation,
// checkpoints, metrics.
//
// The loss of a step is the sum over all supervised tokens of the global batch divided by their number, which
// all ranks know before the first backward. Data order and dropout are functions of global row numbers, so
// the curve does not depend on the layout beyond rounding.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/base_digest.h"
#include "runtime/checkpoint/async_saver.h"
#include "runtime/checkpoint/run_lock.h"
#include "runtime/checkpoint/store.h"
#include "runtime/data/dataset.h"
#include "runtime/data/row_stream.h"
#include "runtime/data/show_row.h"
#include "runtime/evaluation_history.h"
#include "runtime/gemm_rate.h"
#include "runtime/job.h"
#include "runtime/loss_spike.h"
#include "runtime/metrics.h"
#include "runtime/metrics/event_files.h"
#include "runtime/recovery/rank_watch.h"
#include "runtime/router_replay.h"
#include "runtime/training_step.h"
#include "runtime/update_count.h"

namespace pesc {

// A key of a checkpoint's `extra`: the evaluation at its step was skipped because the run was told to stop.
inline constexpr const char* kEvaluationDue = "evaluation_due";

// Asks the training loop to save and stop at the next step boundary. Async-signal-safe.
void request_preemption();
[[nodiscard]] bool preemption_was_requested();  // of this process

struct TrainResult {
  int64_t steps = 0;         // done in all
  int64_t ran = 0;           // in this launch
  bool preempted = false;    // steps are left, or the evaluation of the last one
  bool evaluated = false;    // the run began with the evaluation that the launch before had skipped
  bool ended_early = false;  // train.early_stopping_patience has ended the run
  double loss = 0;
  double seconds = 0;
};

class Trainer {
 public:
  // Reads the data, loads the base and the newest checkpoint of the run directory. `launch_id` > 0: a
  // supervisor holds the run directory's lock for this launch; 0: rank 0 takes it. Collective.
  Trainer(Job& job, RankWatch& watch, uint64_t launch_id);
  ~Trainer();
  TrainResult run();

  [[nodiscard]] Decoder& decoder() { return *decoder_; }
  // The decoder's arenas, and the host memory for the copy of a checkpoint.
  [[nodiscard]] std::vector<ArenaSize> memory() const;
  // Row `number` of the run's data order, as it is trained on (runtime/data/show_row.h).
  [[nodiscard]] std::string shown_row(int64_t number, Marks marks) const;

 private:
  TrainResult run_steps();
  void load_data();
  void set_length();
  void tell_length() const;
  void check_length(const CheckpointState& saved) const;
  void check_rows_alike();
  void check_same_rows(const CheckpointState& saved) const;
  void prepare();
  void identify_adapter();
  void prepare_run_directory();
  void resume();
  [[nodiscard]] RoutingOwner check_routing(const LoadedCheckpoint* resumed);
  StepMetrics train_step();
  [[nodiscard]] Update guard(const StepMetrics& m, int retries) const;
  void check_skipped(const StepMetrics& m) const;
  void check_updated(const TrainResult& result) const;
  [[nodiscard]] bool worth_saving(const StepMetrics& m) const;
  void refuse_last_save(const TrainResult& result) const;
  [[nodiscard]] std::string where_to_look(const std::string& rows) const;
  [[nodiscard]] std::string last_good() const;
  [[nodiscard]] bool still_ours() const noexcept;
  [[nodiscard]] bool evaluates_at(int64_t step) const;
  enum class MaySave { kNo, kYes };
  void evaluate_and_log(MaySave may_save);
  void consider_best(double loss);
  void resume_evaluation(const CheckpointState& saved);
  void resume_history(const CheckpointState& saved);
  [[nodiscard]] bool ends_early() const;
  void tell_early_end() const;
  // A save continues during the steps that follow; one save at a time.
  enum class Patience { kPoll, kWait };
  enum class LastSave { kNo, kYes };
  void wait_for_copy();
  void start_save(LastSave last);
  void poll_save();
  void advance_save(Patience patience, LastSave last);
  void answer_failed_save(const Error& error, LastSave last);
  void open_metrics();
  void report(const StepMetrics& m);
  [[nodiscard]] CheckpointState state() const;

  Job& job_;
  RankWatch& watch_;
  std::unique_ptr<Dataset> train_, eval_;
  std::unique_ptr<RowStream> row_stream_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<TrainingStep> training_step_;
  std::unique_ptr<RunLock> lock_;
  std::unique_ptr<CheckpointStore> store_;
  std::unique_ptr<AsyncSaver> saver_;
  std::unique_ptr<TrainEvents> events_;
  std::unique_ptr<MetricsLog> metrics_;
  std::unique_ptr<RouterReplayRecorder> recorder_;
  std::unique_ptr<RouterReplayReader> replay_;
  LossSpikes spikes_;
  UpdateCount updates_;
  EvaluationHistory evaluations_;
  // The checkpoint with the lowest eval loss; the second one stands on disk.
  std::optional<BestCheckpoint> best_, committed_best_;
  LearningRate lr_;
  BaseDigest digest_;
  std::string rows_;  // row_record() of train_
  uint64_t launch_id_ = 0;
  int64_t steps_ = 0;             // of the whole run
  int64_t step_ = 0;              // done
  int64_t consumed_samples_ = 0;  // rows of the data order that are done
  int64_t end_ = 0;               // of the data order: rows from this number on are not trained on
  int64_t started_save_ = -1;     // step of the newest save that has not failed
  int64_t committed_step_ = -1;   // of the newest committed checkpoint
  GemmRates gemm_rates_;          // measure_rates()
  GemmRates peak_rates_;          // peak_rates()
  double mean_seconds_ = 0;
  bool claimed_ = false;  // no longer refused: the run directory is this launch's
  bool preempt_agreed_ = false;
  bool save_due_ = false;
  bool evaluation_due_ = false;  // at step_: a request to stop has ended it
  bool terminal_ = false;
};

}  // namespace pesc
