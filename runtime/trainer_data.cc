// The rows of a run and how many of its steps they make.
#include <glog/logging.h>

#include <cmath>

#include "runtime/config/unreached_settings.h"
#include "runtime/data/row_record.h"
#include "runtime/data/share.h"
#include "runtime/data/show_row.h"
#include "runtime/trainer.h"

namespace pesc {

void Trainer::load_data() {
  const ExperimentConfig& c = job_.config;
  const StillAlive alive = [this] { watch_.enter(Section::kSetup, step_); };
  run_collectively(job_.ranks->world(), [&] {
    train_ = load_training_data(job_, alive);
    if (c.data.evaluates()) eval_ = load_eval_data(job_, nullptr, alive);
    row_stream_ = make_row_stream(job_, *train_);
  });
  check_rows_alike();
  if (eval_) {  // rank 0's word counts, so that all decide alike
    evaluations_ = EvaluationHistory(
        job_.ranks->world().host_all_gather(evaluated_rows(*eval_, c.train.max_eval_samples)).front());
  }
  log_data(job_, "training data", *train_);
  if (eval_) log_data(job_, "eval data", *eval_);
  if (eval_ && c.train.eval_steps > 0 && job_.first()) {
    std::vector<int64_t> sizes;
    for (const DatasetContent& file : eval_->content()) sizes.push_back(file.rows);
    if (const std::string text = beyond_all_rows(sizes, c.train.max_eval_samples); !text.empty())
      LOG(WARNING) << text;
  }
  set_length();
  tell_length();
}

// The steps from `consumed_samples` to the end, on top of those that are done.
void Trainer::set_length() {
  const TrainSection& t = job_.config.train;
  end_ = t.max_steps > 0 ? INT64_MAX : row_stream_->rows_for(t.num_train_epochs);
  steps_ = t.max_steps > 0
               ? t.max_steps
               : step_ + (end_ - consumed_samples_ + t.global_batch_size - 1) / t.global_batch_size;
  lr_ = t.lr;
  lr_.total = steps_;
  lr_.warmup = t.warmup_ratio > 0 ? share_of(t.warmup_ratio, steps_) : t.warmup_steps;
}

// What is done where it is not what was asked.
void Trainer::tell_length() const {
  if (!job_.first()) return;
  const TrainSection& t = job_.config.train;
  if (t.max_steps == 0) {
    const int64_t last = end_ - (steps_ - 1) * t.global_batch_size;
    const bool packs = row_stream_->packs();
    LOG(INFO) << t.num_train_epochs << " epochs of " << train_->epoch_size()
              << (packs ? " conversations" : " rows") << " are " << end_ << (packs ? " packed" : "")
              << " rows in " << steps_ << " steps; the last step has " << last << " rows";
    const double asked = row_stream_->exact_rows_for(t.num_train_epochs);
    if (std::abs(asked - static_cast<double>(end_)) > 1e-9 * asked) {
      LOG(WARNING) << "train.num_train_epochs asks for " << asked << " rows; " << end_ << " are trained on";
    }
  }
  if (t.warmup_ratio > 0)
    LOG(INFO) << "the warm-up has " << lr_.warmup << " of " << steps_ << " steps (train.warmup_ratio "
              << t.warmup_ratio << ")";
  if (lr_.warmup > steps_) {
    LOG(WARNING) << "the warm-up (train.warmup_steps) of " << lr_.warmup << " steps does not end in a run of "
                 << steps_ << " steps: train.learning_rate is never reached";
  }
  // Packed, an epoch has fewer rows; its packing is not waited for where nothing else needs its end.
  const int64_t epoch_rows = t.max_steps == 0 ? row_stream_->rows_for(1) : train_->epoch_size();
  for (const std::string& text :
       unreached_settings(job_.config, {steps_, epoch_rows, job_.ranks->world().size()}))
    LOG(WARNING) << text;
}

std::string Trainer::shown_row(int64_t number, Marks marks) const {
  const HostBatch row = row_stream_->batch({number, number + 1}).host;
  std::vector<TokenRange> learned;
  for (size_t t = 0; t < row.targets.size(); ++t) {
    if (row.targets[t] < 0) continue;  // it is token t + 1
    if (!learned.empty() && learned.back().end == t + 1) {
      ++learned.back().end;
    } else {
      learned.push_back({t + 1, t + 2});
    }
  }
  return pesc::shown_row(*job_.tokenizer, row.tokens, learned, marks);
}

// Every rank reads the files itself, on several hosts perhaps from several disks.
void Trainer::check_rows_alike() {
  Communicator& world = job_.ranks->world();
  rows_ = row_record(*train_);
  const std::vector<std::string> all = world.host_all_gather(rows_);
  for (size_t rank = 1; rank < all.size(); ++rank) {
    const auto differences = row_differences(all[0], all[rank]);
    if (differences.empty()) continue;
    throw AgreedError(ExitCode::kData,
                      str_cat("rank ", rank, " has other training rows than rank 0: ", differences[0],
                              "; every host needs the same files"),
                      job_.first());
  }
}

void Trainer::check_same_rows(const CheckpointState& saved) const {
  const auto before = saved.extra.find(kTrainingRows);
  if (before == saved.extra.end()) {
    if (job_.first()) {
      LOG(WARNING) << "the checkpoint of step " << saved.step
                   << " says nothing of its training rows: nobody knows whether they are still the same";
    }
    return;
  }
  const auto differences = row_differences(before->second, rows_);
  if (differences.empty()) return;
  std::string text;
  for (const std::string& line : differences) text += "\n  " + line;
  throw UsageError(str_cat("the training rows are not those of the checkpoint of step ", saved.step,
                           "; put them back, or use another run_dir to start anew:", text));
}

// A run that has gone further than it is asked to stays as it is.
void Trainer::check_length(const CheckpointState& saved) const {
  const TrainSection& t = job_.config.train;
  // An older pesc filled the last step of train.num_train_epochs with rows of the next epoch.
  const int64_t end = saved.extra.contains(kUpdates) ? end_ : end_ + t.global_batch_size - 1;
  if (t.max_steps > 0 ? saved.step <= t.max_steps : saved.consumed_samples <= end) return;
  const std::string asked = t.max_steps > 0 ? str_cat("train.max_steps is ", t.max_steps)
                                            : str_cat("train.num_train_epochs is ", t.num_train_epochs,
                                                      ", which is ", end_, " rows");
  throw UsageError(str_cat(asked, ", but the run in '", job_.config.run_dir, "' has done ", saved.step,
                           " steps (", saved.consumed_samples,
                           " rows) already, and nothing is taken back; ask for at least as many, or use "
                           "another run_dir"));
}

}  // namespace pesc
