// The part of Trainer that evaluates: the eval loss at the end of a step.
#include <glog/logging.h>

#include <bit>
#include <cstdio>
#include <optional>
#include <span>
#include <vector>

#include "runtime/checkpoint/best_checkpoint.h"
#include "runtime/clock.h"
#include "runtime/evaluation.h"
#include "runtime/metrics.h"
#include "runtime/text/printable.h"
#include "runtime/trainer.h"

namespace pesc {

bool Trainer::evaluates_at(int64_t step) const {
  const int64_t every = job_.config.train.eval_steps;
  return eval_ != nullptr && every > 0 && step > 0 && step % every == 0;
}

// A request to stop ends the evaluation between two batches, on all ranks. The step is then saved without
// this record, and the checkpoint says so: a run that resumes from it evaluates first.
void Trainer::evaluate_and_log(MaySave may_save) {
  watch_.enter(Section::kEval, step_);
  watch_.faults().reach(Section::kEval, step_);
  const double begin = now();
  const auto losses = evaluate_loss(job_, *decoder_, *eval_, job_.config.train.micro_batch_rows(),
                                    job_.config.train.max_eval_samples, preemption_was_requested);
  evaluation_due_ = !losses;
  if (!losses) {
    preempt_agreed_ = true;
    if (job_.first())
      LOG(INFO) << "asked to stop: the evaluation at step " << step_
                << " is left out; the run makes up for it when it is started again";
    return;
  }
  const bool lowest = evaluations_.add(step_, losses->total.loss);
  if (may_save == MaySave::kYes) consider_best(losses->total.loss);
  if (!job_.first()) return;
  // Not among the datasets, since a dataset may have any name.
  nlohmann::json record = {
      {"kind", "eval"}, {"step", step_}, {"eval_loss_total", losses->total.loss}, {"seconds", now() - begin}};
  if (lowest) record["lowest"] = true;
  char part[64];
  std::snprintf(part, sizeof(part), "  total %.4f", losses->total.loss);
  std::string text = part;
  for (const auto& [tag, h] : losses->tags) {
    record["eval_loss"][tag] = h.loss;
    std::snprintf(part, sizeof(part), " %.4f", h.loss);
    text += str_cat("  ", printable(tag, kUncut), part);
  }
  metrics_->write(record);
  std::fprintf(stderr, "%seval loss at step %lld:%s\n", terminal_ ? "\r\033[K" : "",
               static_cast<long long>(step_), text.c_str());
}

// The checkpoint still says so when a launch has made up for it: the records know, and have its loss.
void Trainer::resume_evaluation(const CheckpointState& saved) {
  const auto due = saved.extra.find(kEvaluationDue);
  if (due == saved.extra.end() || !evaluates_at(saved.step)) return;
  std::optional<double> done;
  run_collectively(job_.ranks->world(), [&] {
    if (job_.first()) done = eval_loss_of_step(job_.config.run_dir + "/metrics.jsonl", saved.step);
  });
  const int64_t mine[2] = {done ? 1 : 0, std::bit_cast<int64_t>(done.value_or(0))};
  const std::vector<int64_t> first = job_.ranks->world().host_all_gather(std::span(mine));
  evaluation_due_ = first[0] == 0;
  if (evaluation_due_) return;
  const auto loss = std::bit_cast<double>(first[1]);
  evaluations_.add(saved.step, loss);
  consider_best(loss);
}

// Losses over other rows than before cannot be compared with those before. Without rows to evaluate nothing is
// compared, and all is kept for a later launch.
void Trainer::resume_history(const CheckpointState& saved) {
  const auto found = saved.extra.find(kEvaluationHistory);
  if (found == saved.extra.end()) return;
  EvaluationHistory before;
  std::optional<BestCheckpoint> best = saved.best;
  run_collectively(job_.ranks->world(), [&] {
    before = EvaluationHistory::load(found->second);
    if (!best || !job_.first()) return;
    const std::string folder = str_cat(job_.config.run_dir, "/step-", best->step);
    if (posix_filesystem().exists(folder)) return;
    LOG(WARNING) << "the checkpoint with the lowest eval loss was '" << folder
                 << "', which is gone; the best one is marked anew";
    best.reset();
  });
  if (eval_ != nullptr && before.rows() != evaluations_.rows()) {
    if (job_.first()) {
      LOG(WARNING)
          << "the rows that are evaluated, or train.max_eval_samples, are others than before: the lowest "
             "eval loss is found anew";
    }
    return;
  }
  evaluations_ = before;
  const int64_t kept = best ? 1 : 0;
  if (job_.ranks->world().host_all_gather(std::span(&kept, 1)).front() == 1)
    best_ = committed_best_ = saved.best;
}

// The step is saved, unless it has been: then the mark alone is missing.
void Trainer::consider_best(double loss) {
  if (!job_.config.checkpoint.keep_best || (best_ && loss >= best_->eval_loss)) return;
  best_ = {step_, loss};
  if (committed_step_ != step_) {
    save_due_ = true;
    return;
  }
  committed_best_ = best_;
  run_collectively(job_.ranks->world(), [&] {
    if (job_.first() && claimed_) put_best_mark(posix_filesystem(), job_.config.run_dir, best_, launch_id_);
  });
}

void Trainer::tell_early_end() const {
  if (!job_.first()) return;
  LOG(INFO) << "the run ends at step " << step_ << " of " << steps_ << ": the last "
            << evaluations_.without_improvement() << " evaluations are not below the eval loss "
            << evaluations_.lowest() << " of step " << evaluations_.lowest_step()
            << " (train.early_stopping_patience " << job_.config.train.early_stopping_patience << ")";
}

bool Trainer::ends_early() const {
  const int64_t patience = job_.config.train.early_stopping_patience;
  return patience > 0 && evaluations_.without_improvement() >= patience;
}

}  // namespace pesc
