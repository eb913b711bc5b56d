// The part of Trainer that tells: metrics.jsonl, the event files for TensorBoard, the line of progress.
#include <glog/logging.h>

#include <cstdio>

#include "runtime/expert_exchange.h"
#include "runtime/metrics.h"
#include "runtime/metrics/event_files.h"
#include "runtime/trainer.h"

namespace pesc {

// On rank 0. The record of the launch stands in metrics.jsonl before the event file is made of it.
void Trainer::open_metrics() {
  const ExperimentConfig& c = job_.config;
  metrics_ = std::make_unique<MetricsLog>(c.run_dir + "/metrics.jsonl", launch_id_);
  nlohmann::json launch{{"kind", "launch"}, {"step", step_}, {"ranks", job_.ranks->world().size()}};
  if (c.pesc.mode == TrainMode::kPesc && c.parallel.ep > 1)
    launch["expert_exchange"] = expert_exchange_name(expert_exchange(c, job_.ranks->world().size()));
  metrics_->write(launch);
  if (!c.metrics.tensorboard) return;
  try {
    events_ = std::make_unique<TrainEvents>(c.run_dir, step_, c.train.logging_steps);
  } catch (const Error& error) {
    LOG(WARNING) << error.what() << "; this launch writes no event file for TensorBoard";
    return;
  }
  metrics_->on_record([this](const std::string& line) { events_->add(line); });
}

void Trainer::report(const StepMetrics& m) {
  mean_seconds_ = mean_seconds_ == 0 ? m.seconds : 0.95 * mean_seconds_ + 0.05 * m.seconds;
  if (!job_.first()) return;
  metrics_->write(to_json(m));
  const bool line = step_ % job_.config.train.logging_steps == 0 || step_ == steps_ || step_ == 1;
  if (!terminal_ && !line) return;
  std::fprintf(stderr, "%s%s%s", terminal_ ? "\r\033[K" : "", progress_line(m, mean_seconds_).c_str(),
               terminal_ && step_ != steps_ ? "" : "\n");
}

}  // namespace pesc
