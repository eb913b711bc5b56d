// The part of Trainer that judges a step: whether it updates the weights, whether the run continues, whether
// its state may be saved.
#include <glog/logging.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "runtime/trainer.h"

namespace pesc {
namespace {

// Without the sign of a value that is not a number, which says nothing.
std::string loss_text(double value) {
  return std::isnan(value) ? "nan" : str_cat(value);
}

}  // namespace

// All ranks see the same loss and norm, so all decide the same; nothing has been updated yet. The step is
// first recomputed once, because a flipped bit does not repeat.
Update Trainer::guard(const StepMetrics& m, int retries) const {
  const TrainSection& t = job_.config.train;
  const bool finite = is_finite(m);
  if (finite && !spikes_.is_spike(m.loss)) return Update::kApply;
  const int64_t behind = std::min(consumed_samples_ + t.global_batch_size, end_);
  const std::string rows = str_cat("rows ", consumed_samples_, " to ", behind - 1, " of the stream");
  std::string what = str_cat("step ", step_ + 1, ": the loss is ", loss_text(m.loss));
  what += finite ? str_cat(", a spike: the usual is ", spikes_.usual())
                 : str_cat(" and the gradient norm ", loss_text(m.grad_norm));
  if (finite && t.on_loss_spike == OnLossSpike::kWarn) {
    if (job_.first()) LOG(WARNING) << what << "; " << rows;
    return Update::kApply;
  }
  what += "; no rank has updated its weights";
  const char* field = finite ? "train.on_loss_spike: SKIP" : "train.on_nonfinite: SKIP";
  const bool skip = finite ? t.on_loss_spike == OnLossSpike::kSkip : t.on_nonfinite == OnNonfinite::kSkip;
  if (retries == 0 || skip) {
    if (job_.first()) {
      LOG(ERROR) << what
                 << (retries == 0 ? "; the step is computed once more"
                                  : str_cat("; the batch is left out (", field, ")"));
    }
    return Update::kDiscard;
  }
  std::string advice = where_to_look(rows);
  if (!updates_.none()) advice += str_cat(". Batches such as this one alone are left out with ", field);
  throw AgreedError(ExitCode::kInternal, str_cat(what, ". ", advice), job_.first());
}

// Before the first update it is not the run that has gone wrong.
std::string Trainer::where_to_look(const std::string& rows) const {
  if (updates_.none()) {
    const std::string& base = job_.config.model.path;
    return str_cat("No step of this run has updated the weights, so they are still those of ",
                   base.empty() ? "the start" : str_cat("the base '", base, "'"), ": look at these first",
                   base.empty() ? "" : " (pesc eval --base)", ", then at ", rows);
  }
  return str_cat("Lower train.learning_rate, or look at ", rows, "; ", last_good());
}

std::string Trainer::last_good() const {
  // At the end of the run it is still waited for; whether it can be saved is told by then.
  const std::string behind =
      started_save_ > committed_step_ ? str_cat(", and that of step ", started_save_, " is being saved") : "";
  if (committed_step_ < 0) return "there is no checkpoint to go back to" + behind;
  return str_cat("the last good checkpoint is that of step ", committed_step_) + behind;
}

// Called on all ranks alike, after the step has been reported.
void Trainer::check_skipped(const StepMetrics& m) const {
  const int64_t skipped = updates_.skipped_in_a_row();
  if (skipped < kMostSkippedInARow) return;
  const int64_t first =
      std::max<int64_t>(0, consumed_samples_ - skipped * job_.config.train.global_batch_size);
  throw AgreedError(
      ExitCode::kInternal,
      str_cat("steps ", step_ - skipped + 1, " to ", step_, ": all ", skipped,
              " batches in a row were left out, and no more are tried; the last loss is ", loss_text(m.loss),
              ", the gradient norm ", loss_text(m.grad_norm), ". ",
              where_to_look(str_cat("rows ", first, " to ", consumed_samples_ - 1, " of the stream"))),
      job_.first());
}

// A run without a single update is a failure and saves nothing.
void Trainer::check_updated(const TrainResult& result) const {
  if (result.ran == 0 || result.preempted || !updates_.none()) return;
  throw AgreedError(
      ExitCode::kInternal,
      str_cat("all ", step_, " batches of the run were left out, and nothing was trained; the last loss is ",
              loss_text(result.loss), ". ",
              where_to_look(str_cat("rows 0 to ", consumed_samples_ - 1, " of the stream"))),
      job_.first());
}

// Weights that give a non-finite loss may be broken although they are finite, and must not replace a good
// checkpoint. The save waits for a batch that is not skipped.
bool Trainer::worth_saving(const StepMetrics& m) const {
  return !updates_.none() && (!m.skipped || is_finite(m));
}

// The run is at its end, or told to stop, and the last batch was left out as not finite. Told to stop, the
// run goes on from the last good checkpoint when it is started again; at its end it is no success.
void Trainer::refuse_last_save(const TrainResult& result) const {
  const std::string what = str_cat("step ", step_, ": the last batch was left out, its loss being ",
                                   loss_text(result.loss), "; the weights may be broken and are not saved. ",
                                   where_to_look("the last rows of the stream"));
  if (result.preempted) {
    if (job_.first()) LOG(ERROR) << what;
    return;
  }
  throw AgreedError(ExitCode::kInternal, what, job_.first());
}

}  // namespace pesc
