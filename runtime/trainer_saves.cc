// The part of Trainer that saves: a checkpoint is started at the end of a step and written during the next
// steps.
#include <glog/logging.h>

#include <chrono>
#include <utility>

#include "runtime/clock.h"
#include "runtime/trainer.h"

namespace pesc {
// A pending save reads the tensors that the optimizer is about to change, so its copy must come first.
void Trainer::wait_for_copy() {
  if (!saver_->pending()) return;
  const double begin = now();
  saver_->wait_for_copy(decoder_->stream());
  // In the step that is being computed.
  if (job_.first()) metrics_->write({{"step", step_ + 1}, {"save_copy_wait_seconds", now() - begin}});
}

void Trainer::start_save(LastSave last) {
  save_due_ = false;
  if (started_save_ == step_) return;
  watch_.enter(Section::kCheckpoint, step_);
  const double begin = now();
  advance_save(Patience::kWait, LastSave::kNo);
  saver_->start(job_.ranks->world(), decoder_->stream(), state(), trainable_tensors(*decoder_, true),
                launch_id_);
  started_save_ = step_;
  watch_.faults().reach(Section::kCheckpoint, step_);
  if (!job_.config.checkpoint.async_save) advance_save(Patience::kWait, last);
  if (!job_.first()) return;
  metrics_->write({{"step", step_}, {"save_stall_seconds", now() - begin}});
}

// Called at every step boundary while a save is pending: the ranks find out whether all have written, and
// then exchange their parts.
void Trainer::poll_save() {
  if (!saver_->pending()) return;
  const double begin = now();
  advance_save(Patience::kPoll, LastSave::kNo);
  if (job_.first()) metrics_->write({{"step", step_}, {"save_poll_seconds", now() - begin}});
}

void Trainer::advance_save(Patience patience, LastSave last) {
  std::optional<SaveReport> report;
  Communicator& world = job_.ranks->world();
  try {
    report = patience == Patience::kWait ? saver_->wait(world) : saver_->poll(world);
  } catch (const IoError& error) {  // the same on all ranks
    answer_failed_save(error, last);
    return;
  } catch (
      const InternalError& error) {  // the same on all ranks, too: what was to be saved is not fit for it
    started_save_ = committed_step_;
    throw AgreedError(error.code(), str_cat(error.what(), "; ", last_good()), job_.first());
  }
  if (!report) return;
  committed_step_ = started_save_;
  if (best_ && best_->step == committed_step_) committed_best_ = best_;
  if (!job_.first()) return;
  metrics_->write({{"step", committed_step_}, {"saved_step", committed_step_}});
  for (const std::string& note : report->notes) LOG(WARNING) << note;
  LOG(INFO) << "saved " << report->directory << " (" << report->bytes << " bytes)";
}

// After a failed save the run continues only if an earlier checkpoint exists, another save will follow, and
// this launch still owns the run directory.
void Trainer::answer_failed_save(const Error& error, LastSave last) {
  const bool go_on = job_.config.checkpoint.on_save_error == OnSaveError::kContinue && committed_step_ >= 0 &&
                     last == LastSave::kNo;
  run_collectively(job_.ranks->world(), [&] {
    if (!go_on || (job_.first() && !still_ours())) throw IoError(error.what());
  });
  const int64_t failed = std::exchange(started_save_, committed_step_);
  if (best_ && best_->step == failed) best_ = committed_best_;
  if (!job_.first()) return;
  LOG(ERROR) << error.what();
  LOG(ERROR)
      << "TRAINING GOES ON WITHOUT THIS CHECKPOINT (checkpoint.on_save_error: CONTINUE); a restart would "
         "begin again at step "
      << committed_step_ << ". Make room, or look at the disk, now.";
  metrics_->write({{"step", failed}, {"save_failed", error.what()}});
}

}  // namespace pesc
