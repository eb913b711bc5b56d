#include "runtime/config/unreached_settings.h"

#include <cstddef>
#include <utility>

#include "ops/core/check.h"
#include "runtime/recovery/fault.h"
#include "runtime/recovery/recovery_section.h"

namespace pesc {
namespace {

class LengthCheck {
 public:
  LengthCheck(const ExperimentConfig& config, const RunLength& run) : c_(config), run_(run) {}

  std::vector<std::string> take() && {
    look_at_evaluations();
    look_at_checkpoints();
    look_at_faults();
    if (c_.pesc.mode == TrainMode::kPesc && c_.pesc.moe.num_experts == 1)
      say("moe.num_experts", "is 1: the router has no choice, every token goes to the only expert");
    if (c_.train.global_batch_size > run_.epoch_rows)
      say("train.global_batch_size",
          str_cat("is ", c_.train.global_batch_size, ", more than the ", run_.epoch_rows,
                  " rows of an epoch: a full step has rows of more than one epoch"));
    return std::move(out_);
  }

 private:
  void say(const std::string& field, const std::string& what) {
    out_.push_back(str_cat(c_.places.prefix(field), field, " ", what));
  }
  // "is 50, but the run has 10 steps"
  [[nodiscard]] std::string beyond(int64_t value) const {
    return str_cat("is ", value, ", but the run has ", run_.steps, run_.steps == 1 ? " step" : " steps");
  }
  [[nodiscard]] int64_t evaluations() const {
    const int64_t every = c_.data.evaluates() ? c_.train.eval_steps : 0;
    return every > 0 ? run_.steps / every : 0;
  }

  void look_at_evaluations() {
    const TrainSection& t = c_.train;
    const int64_t count = evaluations();
    const bool asked = c_.data.evaluates() && t.eval_steps > 0;
    if (asked && count == 0) say("train.eval_steps", beyond(t.eval_steps) + ": nothing is evaluated");
    if (count > 0 && t.early_stopping_patience > count)
      say("train.early_stopping_patience",
          str_cat("is ", t.early_stopping_patience, ", but the run has ", count,
                  count == 1 ? " evaluation" : " evaluations", ": it never ends early"));
    if (count == 0 && c_.recovery.eval_limit != RecoverySection().eval_limit)
      say("recovery.eval_limit_s", "has no effect in a run without evaluations");
  }

  void look_at_checkpoints() {
    const CheckpointSection& k = c_.checkpoint;
    if (k.save_steps > run_.steps)
      say("checkpoint.save_steps", beyond(k.save_steps) + ": it saves at the end alone");
    if (k.keep_every_steps > run_.steps)
      say("checkpoint.keep_every_steps", beyond(k.keep_every_steps) + ": none is kept for good");
  }

  void look_at_faults() {
    for (size_t i = 0; i < c_.debug.faults.size(); ++i) {
      const FaultPoint& fault = c_.debug.faults[i];
      const std::string field = str_cat("debug.fault[", i, "]");
      if (fault.rank >= run_.ranks)
        say(field,
            str_cat("never occurs: it is of rank ", fault.rank, ", and the ranks are 0 to ", run_.ranks - 1));
      else if (fault.step > run_.steps)
        say(field, str_cat("never occurs: it is of step ", fault.step, ", and the run has ", run_.steps,
                           run_.steps == 1 ? " step" : " steps"));
      else if (fault.section == Section::kEval && evaluations() == 0)
        say(field, "never occurs: it is of the section eval, and the run has no evaluations");
    }
  }

  const ExperimentConfig& c_;
  const RunLength& run_;
  std::vector<std::string> out_;
};

}  // namespace

std::vector<std::string> unreached_settings(const ExperimentConfig& config, const RunLength& run) {
  return LengthCheck(config, run).take();
}

}  // namespace pesc
