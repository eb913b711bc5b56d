// The part of Trainer that evaluates: the held-out loss at the end of a step.
#include <glog/logging.h>

#include <cstdio>

#include "runtime/evaluation.h"
#include "runtime/terminal.h"
#include "runtime/trainer.h"

namespace pesc {

// A request to stop ends the evaluation between two batches, on all ranks; the step is then saved without
// this record.
void Trainer::evaluate_and_log() {
  const auto losses = held_out_loss(job_, *decoder_, *eval_, job_.config.train.micro_batch,
                                    job_.config.train.eval_rows, preemption_was_requested);
  if (!losses) {
    preempt_agreed_ = true;
    if (job_.first()) LOG(INFO) << "asked to stop: the evaluation at step " << step_ << " is left out";
    return;
  }
  if (!job_.first()) return;
  // Not among the datasets, since a dataset may have any name.
  nlohmann::json record = {
      {"kind", "held_out"}, {"step", step_}, {"held_out_loss_total", losses->total.loss}};
  char part[64];
  std::snprintf(part, sizeof(part), "  total %.4f", losses->total.loss);
  std::string text = part;
  for (const auto& [tag, h] : losses->tags) {
    record["held_out_loss"][tag] = h.loss;
    std::snprintf(part, sizeof(part), " %.4f", h.loss);
    text += str_cat("  ", terminal_text(tag), part);
  }
  metrics_->write(record);
  std::fprintf(stderr, "%sheld-out loss at step %lld:%s\n", terminal_ ? "\r\033[K" : "",
               static_cast<long long>(step_), text.c_str());
}

}  // namespace pesc
