#include "runtime/config/same_run.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "configs/schema/experiment.pb.h"
#include "ops/core/check.h"
#include "runtime/config/experiment.h"
#include "runtime/config/resolved.h"

namespace pesc {
namespace {

enum class Kind { kModel, kTraining, kFrozen, kRounding, kFree };
struct Rule {
  std::string_view field;  // the beginning of its path
  Kind kind;
};

// The first that fits counts.
constexpr std::array kRules{
    Rule{"name:", Kind::kFree},
    Rule{"run_dir:", Kind::kFree},
    Rule{"checkpoint.", Kind::kFree},
    Rule{"generate.", Kind::kFree},
    Rule{"debug.", Kind::kFree},
    Rule{"metrics.", Kind::kFree},
    Rule{"recovery.", Kind::kFree},
    Rule{"data.eval[", Kind::kFree},
    Rule{"data.on_bad_row:", Kind::kFree},     // the rows themselves are compared
    Rule{"data.chat_template:", Kind::kFree},  // what it comes to is compared by content
    Rule{"data.on_long_row:", Kind::kFree},
    Rule{"data.cache_dir:", Kind::kFree},
    Rule{"model.path:", Kind::kFree},
    Rule{"model.tokenizer:", Kind::kFree},
    Rule{"model.follow_links:", Kind::kFree},
    Rule{"model.cache_dir:", Kind::kFree},
    Rule{"model.adapter:", Kind::kFree},  // the adapter itself is compared
    Rule{"train.eval_steps:", Kind::kFree},
    Rule{"train.max_eval_samples:", Kind::kFree},
    Rule{"train.logging_steps:", Kind::kFree},
    Rule{"train.early_stopping_patience:", Kind::kFree},
    Rule{"train.on_nonfinite:", Kind::kFree},
    Rule{"train.loss_spike_ratio:", Kind::kFree},
    Rule{"train.on_loss_spike:", Kind::kFree},
    Rule{"train.recompute_granularity:", Kind::kFree},
    // The same bits whatever they say; the layout and what threads, chunks and the exchange came to are compared
    // as they were.
    Rule{"parallel.overlap_comm:", Kind::kFree},
    Rule{"parallel.tp:", Kind::kFree},
    Rule{"parallel.ep:", Kind::kFree},
    Rule{"parallel.num_threads:", Kind::kFree},
    Rule{"parallel.dispatch_chunks:", Kind::kFree},
    Rule{"parallel.expert_exchange:", Kind::kFree},
    Rule{"parallel.", Kind::kRounding},
    Rule{"train.compute_dtype:", Kind::kRounding},
    Rule{"train.frozen_dtype:", Kind::kFrozen},
    Rule{"model.shape.initializer_range:", Kind::kTraining},
    Rule{"model.shape.", Kind::kModel},
    Rule{"train.mode:", Kind::kModel},
    Rule{"lora.lora_dropout:", Kind::kTraining},
    Rule{"lora.", Kind::kModel},
    Rule{"moe.adapter_dropout:", Kind::kTraining},
    Rule{"moe.router_aux_loss_coef:", Kind::kTraining},
    Rule{"moe.", Kind::kModel},
};

// Of data.train[N]: what decides where the rows are and what they are called. The rows themselves are compared.
bool is_of_file(std::string_view line) {
  if (!line.starts_with("data.train[")) return false;
  const std::string_view field = line.substr(line.find(']') + 1);
  return field.starts_with(".path:") || field.starts_with(".tag:") || field.starts_with(".columns.");
}

Kind kind_of(std::string_view line) {
  if (is_of_file(line)) return Kind::kFree;
  for (const Rule& rule : kRules) {
    if (line.starts_with(rule.field)) return rule.kind;
  }
  return Kind::kTraining;
}

// What AUTO stands for. Plain frozen weights have the compute type, which says it all. With frozen FP8 the GPU
// decides between BF16 and FP8; it is compared by its model.
void resolve_compute(proto::Experiment& e) {
  const auto frozen = e.train().frozen_dtype();
  const bool fp8 =
      frozen == proto::FrozenDtype::AUTO && e.train().compute_dtype() == proto::ComputeDtype::FP8;
  if (fp8) e.mutable_train()->set_frozen_dtype(proto::FrozenDtype::FP8);
  if (frozen == proto::FrozenDtype::F32 || frozen == proto::FrozenDtype::BF16)
    e.mutable_train()->clear_frozen_dtype();
  if (e.train().compute_dtype() != proto::ComputeDtype::AUTO) return;
  const bool cuda = e.parallel().device() == proto::Device::CUDA;
  e.mutable_train()->set_compute_dtype(cuda ? proto::ComputeDtype::BF16 : proto::ComputeDtype::F32);
}

// GEMM algorithms are timed on CUDA in BF16 alone.
void resolve_kernels(proto::Experiment& e) {
  if (e.parallel().device() != proto::Device::CUDA || e.train().compute_dtype() == proto::ComputeDtype::F32)
    e.mutable_parallel()->clear_gemm_autotune();
}

// What the mode does not use, and what no LoRA makes of the rest.
void drop_unused(proto::Experiment& e) {
  const auto mode = e.train().mode();
  if (mode != proto::Mode::PESC) e.clear_moe();
  if (mode == proto::Mode::FULL) e.clear_lora();
  const bool exchanges = mode == proto::Mode::PESC && e.parallel().ep() > 1;
  if (!exchanges || e.parallel().expert_exchange() == proto::ExpertExchange::WEIGHTS)
    e.mutable_parallel()->clear_buffer_factor();
  if (mode != proto::Mode::FULL && e.lora().r() == 0) {
    e.clear_lora();
    e.mutable_lora()->set_r(0);
  }
}

// The linears with LoRA are a set.
void sort_target_modules(proto::Experiment& e) {
  auto& names = *e.mutable_lora()->mutable_target_modules();
  std::sort(names.begin(), names.end());
}

// As a user would write it: plain weights that were asked for by name have that name.
std::string frozen_name(const std::string& text) {
  proto::Experiment e = read_recorded_experiment(text);
  if (e.train().frozen_dtype() == proto::FrozenDtype::AUTO) resolve_compute(e);
  return proto::FrozenDtype::Value_Name(e.train().frozen_dtype());
}

std::string comparable(const std::string& text) {
  proto::Experiment e = read_recorded_experiment(text);
  sort_target_modules(e);
  resolve_compute(e);
  resolve_kernels(e);
  drop_unused(e);
  return resolved_text(std::move(e));
}

// Which rows were trained on follows from the fraction; files of data.eval are evaluated in place of it.
bool evaluates_fraction(const std::string& now) {
  return read_recorded_experiment(now).data().validation_fraction() > 0;
}

// The length may change where no learning rate depends on it.
bool length_is_free(const std::string& now) {
  const proto::Train train = read_recorded_experiment(now).train();
  return train.lr_scheduler_type() == proto::LrSchedulerType::CONSTANT_WITH_WARMUP &&
         train.warmup_ratio() == 0;
}

}  // namespace

RunDifferences compare_runs(const std::string& recorded, const std::string& now, CheckpointUse use) {
  RunDifferences found;
  const auto lines = experiment_differences(comparable(recorded), comparable(now));
  const auto about = [&lines](std::string_view field) {
    return std::any_of(lines.begin(), lines.end(),
                       [&](const std::string& l) { return l.starts_with(field); });
  };
  const bool other_mode = about("train.mode:");
  const bool other_device = about("parallel.device:");
  const bool free_length = length_is_free(now);
  for (std::string line : lines) {
    // Of another mode the rest follows.
    if (other_mode && (line.starts_with("moe.") || line.starts_with("lora."))) continue;
    if (other_device && line.starts_with("parallel.gemm_autotune:")) continue;
    if (free_length && (line.starts_with("train.max_steps:") || line.starts_with("train.num_train_epochs:")))
      continue;
    const Kind kind = kind_of(line);
    if (kind == Kind::kFrozen)
      line = str_cat("train.frozen_dtype: ", frozen_name(recorded), " -> ", frozen_name(now));
    const bool resumes = use == CheckpointUse::kResume;
    if (use == CheckpointUse::kEvaluate && line.starts_with("data.validation_fraction:") &&
        evaluates_fraction(now)) {
      found.refused.push_back(line + " (rows that were trained on would be evaluated)");
      continue;
    }
    if (kind == Kind::kModel || ((kind == Kind::kTraining || kind == Kind::kFrozen) && resumes))
      found.refused.push_back(line);
    if (kind == Kind::kRounding && use != CheckpointUse::kExport) found.rounding.push_back(line);
    if (kind == Kind::kFrozen && !resumes) found.frozen.push_back(line);
  }
  return found;
}

void compare_frozen_gemm(const std::string& recorded, const std::string& now,
                         std::vector<std::string>& rounding) {
  constexpr std::string_view kField = "train.compute_dtype: ";
  // A change from or to F32 is one of the activations too.
  const auto of_gemms = [&](const std::string& line) {
    return line.starts_with(kField) && line.find("F32") == std::string::npos;
  };
  std::erase_if(rounding, of_gemms);
  const bool said = std::any_of(rounding.begin(), rounding.end(),
                                [&](const std::string& line) { return line.starts_with(kField); });
  if (recorded != now && !said) rounding.push_back(str_cat(kField, recorded, " -> ", now));
}

void refuse_differences(const std::vector<std::string>& refused, CheckpointUse use) {
  if (refused.empty()) return;
  std::string text =
      use == CheckpointUse::kResume
          ? "the run directory holds a checkpoint of another configuration; use another run_dir, "
            "or put back (recorded -> now):"
      : use == CheckpointUse::kEvaluate
          ? "the checkpoint was trained as another model or on other rows; put back (recorded -> now):"
          : "the checkpoint was trained as another model; put back (recorded -> now):";
  for (const std::string& line : refused) text += "\n  " + line;
  throw UsageError(text);
}

void check_recorded_numbers(const std::string& recorded, int64_t step, int64_t consumed_samples,
                            uint64_t seed) {
  const proto::Experiment e = read_recorded_experiment(recorded);
  const auto require = [](const char* what, auto is, auto must) {
    if (is == must) return;
    throw DataError(str_cat("the manifest's ", what, " is ", is,
                            ", but by its own configuration and step it is ", must,
                            "; the checkpoint was not written by pesc, or was changed"));
  };
  require("seed", seed, e.train().seed());
  // The last step of train.num_train_epochs may have had fewer rows than others; a run that went on began
  // behind them.
  require("consumed_samples", consumed_samples,
          std::clamp(consumed_samples, step, step * e.train().global_batch_size()));
}

}  // namespace pesc
