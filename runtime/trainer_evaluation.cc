// The part of Trainer that evaluates: the eval loss at the end of a step.
#include <glog/logging.h>

#include <cstdio>
#include <span>

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
void Trainer::evaluate_and_log() {
  watch_.enter(Section::kEval, step_);
  watch_.faults().reach(Section::kEval, step_);
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
  if (!job_.first()) return;
  // Not among the datasets, since a dataset may have any name.
  nlohmann::json record = {{"kind", "eval"}, {"step", step_}, {"eval_loss_total", losses->total.loss}};
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

// The checkpoint still says so when a launch has made up for it: the records know.
void Trainer::resume_evaluation(const CheckpointState& saved) {
  const auto due = saved.extra.find(kEvaluationDue);
  if (due == saved.extra.end() || !evaluates_at(saved.step)) return;
  bool done = false;
  run_collectively(job_.ranks->world(), [&] {
    if (job_.first()) done = has_evaluation(job_.config.run_dir + "/metrics.jsonl", saved.step);
  });
  const int64_t mine = done ? 1 : 0;
  evaluation_due_ = job_.ranks->world().host_all_gather(std::span(&mine, 1)).front() == 0;
}

}  // namespace pesc
