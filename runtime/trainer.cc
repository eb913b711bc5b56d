#include "runtime/trainer.h"

#include <glog/logging.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>

#include "ops/attention.h"
#include "ops/gemm.h"
#include "runtime/checkpoint/best_checkpoint.h"
#include "runtime/clock.h"
#include "runtime/data/row_record.h"
#include "runtime/evaluation.h"
#include "runtime/expert_exchange.h"
#include "runtime/hf/atomic_file.h"
#include "runtime/job_rates.h"
#include "runtime/machine.h"
#include "runtime/same_run.h"
#include "runtime/terminal/terminal.h"

namespace pesc {
namespace {

// Of a checkpoint's further state. Each rank's kernels: kGemmChoices + its number.
constexpr const char* kRecentLosses = "recent_losses";
constexpr const char* kGemmChoices = "gemm_choices.";

volatile std::sig_atomic_t preemption_requested = 0;

// Of a launch that has done no step there is nothing to save: the signal ends its set-up.
void end_set_up_if_stopped() {
  if (preemption_requested == 0) return;
  throw Error(ExitCode::kPreempted,
              "stopped by a signal before the first step of this launch, so that there is nothing to save; "
              "start it again to go on");
}

}  // namespace

void request_preemption() {
  preemption_requested = 1;
}

bool preemption_was_requested() {
  return preemption_requested != 0;
}

Trainer::Trainer(Job& job, RankWatch& watch, uint64_t launch_id)
    : job_(job), watch_(watch), spikes_(job.config.train.loss_spike_ratio), launch_id_(launch_id) {
  terminal_ = writes_to_terminal();
  try {
    prepare();
  } catch (...) {
    if (lock_ != nullptr && !claimed_) {
      for (const std::string& line : lock_->take_back()) LOG(WARNING) << line;
    }
    throw;
  }
}

void Trainer::prepare() {
  job_.still_wanted = end_set_up_if_stopped;
  prepare_run_directory();  // first: a directory that is taken or not ours ends the run before any work
  load_data();
  decoder_ =
      make_training_decoder(job_, job_.config.train.micro_batch_rows(), job_.config.data.max_seq_length);
  if (const std::string exchange = expert_exchange_text(job_.config, job_.mesh().world());
      job_.first() && !exchange.empty())
    LOG(INFO) << "expert exchange: " << exchange;
  training_step_ = std::make_unique<TrainingStep>(job_, *decoder_, train_->tags());
  digest_ = base_digest(job_);
  identify_adapter();
  job_.base.reset();  // its mapped pages would stay resident beside the arenas
  job_.adapter.reset();
  run_collectively(job_.ranks->world(), end_set_up_if_stopped);
  job_.still_wanted = {};
  resume();
  run_collectively(job_.ranks->world(),
                   [&] { store_->reserve(job_.device, trainable_tensors(*decoder_, true)); });
  peak_rates_ = peak_rates(job_);
  gemm_rates_ = measure_rates(job_, *decoder_, 0.3);
}

void Trainer::identify_adapter() {
  if (job_.adapter == nullptr) return;
  std::string mine;
  run_collectively(job_.ranks->world(), [&] {
    check_adapter_base(job_, digest_);
    if (job_.first()) mine = job_.adapter->digest();
  });
  job_.adapter_digest = job_.ranks->world().host_all_gather(mine).front();
}

Trainer::~Trainer() = default;

void Trainer::prepare_run_directory() {
  Communicator& world = job_.ranks->world();
  const ExperimentConfig& c = job_.config;
  run_collectively(world, [&] {
    if (!job_.first()) return;
    if (launch_id_ == 0) {
      lock_ = std::make_unique<RunLock>(RunLock::acquire(c.run_dir));
      launch_id_ = lock_->launch_id();
    } else if (!still_ours()) {
      throw UsageError(str_cat("run directory '", c.run_dir, "': launch ", launch_id_,
                               " does not own it, or does not own it any more; start it with pesc launch"));
    }
  });
  const auto mine = static_cast<int64_t>(launch_id_);
  launch_id_ = static_cast<uint64_t>(world.host_all_gather(std::span(&mine, 1)).front());
  CheckpointOptions options;
  options.keep = static_cast<int>(c.checkpoint.save_total_limit);
  options.keep_every = c.checkpoint.keep_every_steps;
  options.still_ours = [this] { return still_ours(); };
  store_ = std::make_unique<CheckpointStore>(posix_filesystem(), c.run_dir, options);
  saver_ = std::make_unique<AsyncSaver>(*store_);
}

// Asked on rank 0. Under a supervisor, which holds the lock, a newer launch's number says that it is not.
bool Trainer::still_ours() const noexcept {
  if (lock_ != nullptr) return lock_->still_ours();
  try {
    return RunLock::current_launch_id(job_.config.run_dir) == launch_id_;
  } catch (const std::exception&) {
    return false;
  }
}

void Trainer::resume() {
  Communicator& world = job_.ranks->world();
  const ExperimentConfig& c = job_.config;
  Discovery found;
  rethrow_agreed(world, [&] { found = store_->find_newest(world); });
  if (job_.first()) {
    for (const std::string& line : found.passed_over()) LOG(WARNING) << line;
  }
  if (!found.checkpoint && !found.damaged.empty()) {
    throw AgreedError(
        ExitCode::kData,
        str_cat("run_dir '", c.run_dir, "': every checkpoint is damaged; move them away to start afresh"),
        job_.first());
  }
  if (!found.checkpoint && !found.others.empty()) {
    throw AgreedError(ExitCode::kData,
                      str_cat("run_dir '", c.run_dir, "' holds checkpoints of other runs alone (",
                              found.others[0], "); move them away to start afresh"),
                      job_.first());
  }
  if (found.checkpoint) {
    const CheckpointState& s = found.checkpoint->state;
    run_collectively(world, [&] {
      check_length(s);
      const CheckpointNotes notes = check_same_run(job_, *found.checkpoint, digest_, CheckpointUse::kResume);
      if (job_.first() && !notes.information.empty()) LOG(INFO) << notes.information;
      if (job_.first()) {
        for (const std::string& warning : notes.warnings) LOG(WARNING) << warning;
      }
      check_same_rows(s);
      store_->load(*found.checkpoint, decoder_->stream(), trainable_tensors(*decoder_, true));
      decoder_->parameters().refresh_compute_weights(decoder_->stream());
    });
    if (const auto kernels = s.extra.find(kGemmChoices + std::to_string(world.rank()));
        kernels != s.extra.end())
      set_gemm_choices(decoder_->stream(), kernels->second);
    if (const auto losses = s.extra.find(kRecentLosses); losses != s.extra.end())
      run_collectively(world, [&] { spikes_.load(losses->second); });
    const auto counted = s.extra.find(kUpdates);
    run_collectively(world, [&] { updates_.load(counted == s.extra.end() ? "" : counted->second, s.step); });
    step_ = s.step;
    consumed_samples_ = s.consumed_samples;
    set_length();
    started_save_ = committed_step_ = s.step;
    resume_history(s);
    resume_evaluation(s);
    if (job_.first()) LOG(INFO) << "resumed from " << found.checkpoint->directory << " at step " << step_;
  }
  const LoadedCheckpoint* resumed = found.checkpoint ? &*found.checkpoint : nullptr;
  const RoutingOwner owner = check_routing(resumed);
  run_collectively(world, [&] { watch_.report_to(c.run_dir, launch_id_, c.debug.faults); });
  // Only now is it sure that this configuration may go on with the run.
  claimed_ = true;
  run_collectively(world, [&] {
    if (!job_.first()) return;
    for (const std::string& line : store_->clean_leftovers(launch_id_)) LOG(WARNING) << line;
    const std::string note = store_->claim(resumed, launch_id_);
    if (!note.empty()) LOG(WARNING) << note;
    put_best_mark(posix_filesystem(), c.run_dir, committed_best_, launch_id_);
    AtomicFile resolved(c.run_dir + "/experiment.textproto");
    resolved.write(c.text);
    resolved.commit();
    open_metrics();
  });
  if (!owner.run.empty()) {
    run_collectively(
        world, [&] { recorder_ = std::make_unique<RouterReplayRecorder>(c.debug.routing_record, owner); });
  }
  watch_.enter(Section::kSetup, step_);
  watch_.faults().reach(Section::kSetup, step_);
}

// Whose record debug.routing_record is; nobody's where nothing is recorded. Reads what is to be replayed.
RoutingOwner Trainer::check_routing(const LoadedCheckpoint* resumed) {
  Communicator& world = job_.ranks->world();
  const ExperimentConfig& c = job_.config;
  RoutingOwner owner;
  if (c.pesc.mode != TrainMode::kPesc) return owner;
  if (!c.debug.routing_replay.empty()) {
    run_collectively(world, [&] {
      replay_ = std::make_unique<RouterReplayReader>(c.debug.routing_replay, c.pesc.moe.num_experts_per_tok);
    });
  }
  if (c.debug.routing_record.empty()) return owner;
  std::string run;
  run_collectively(world, [&] {
    if (!job_.first()) return;
    run = store_->identify(resumed, launch_id_).id;
    check_routing_folder(c.debug.routing_record, run);
  });
  owner.run = world.host_all_gather(run).front();
  owner.launch = launch_id_;
  owner.rank = world.rank();
  owner.ranks = world.size();
  owner.top_k = c.pesc.moe.num_experts_per_tok;
  return owner;
}

StepMetrics Trainer::train_step() {
  const TrainSection& t = job_.config.train;
  const Mesh& mesh = job_.mesh();
  StepInput input;
  input.step = step_;
  input.lr = lr_.at(step_);
  input.flag = preemption_was_requested();
  const BatchPlan plan{t.global_batch_size, t.micro_batch_rows(), mesh.dp()};
  for (int64_t m = 0; m < plan.micro_batches(); ++m) {
    if (plan.micro_range(consumed_samples_, m, end_).size() == 0)
      break;  // the last step of all epochs has fewer rows
    const Range mine = plan.local_range(consumed_samples_, m, mesh.dp_rank(), end_);
    input.micro_batches.push_back(row_stream_->batch(mine));
  }
  if (recorder_ != nullptr) {
    input.router_replay = recorder_.get();
  } else if (replay_ != nullptr) {
    replay_->set_step(step_);
    run_collectively(job_.ranks->world(), [&] {
      for (const LocalBatch& b : input.micro_batches)
        replay_->check(b.host, job_.model.num_hidden_layers, job_.config.pesc.moe.num_experts);
    });
    input.router_replay = replay_.get();
  }
  input.injected = watch_.faults().reach(Section::kStep, step_ + 1);
  StepOutput out;
  int retries = 0;
  bool nonfinite = false;
  for (;; ++retries) {
    if (recorder_ != nullptr) recorder_->begin_step(step_);
    out = training_step_->run(input, [&](const StepMetrics& m) {
      nonfinite |= !is_finite(m);
      const Update update = guard(m, retries);
      if (update == Update::kApply) wait_for_copy();
      return update;
    });
    if (out.updated || retries == 1) break;
    watch_.enter(Section::kStep, step_);
    input.injected = watch_.faults().reach(Section::kStep, step_ + 1);
  }
  if (recorder_ != nullptr) recorder_->end_step();
  ++step_;
  const int64_t behind = std::min(consumed_samples_ + t.global_batch_size, end_);
  const int64_t planned = (behind - consumed_samples_) * job_.config.data.max_seq_length;
  out.metrics.fill_rate = planned > 0 ? out.metrics.tokens / static_cast<double>(planned) : 0;
  consumed_samples_ = behind;
  updates_.count(out.updated);
  out.metrics.retries = retries;
  out.metrics.skipped = !out.updated;
  out.metrics.nonfinite = nonfinite;
  out.metrics.spike = spikes_.is_spike(out.metrics.loss);
  if (out.updated) spikes_.add(out.metrics.loss);
  watch_.step_took(out.metrics.seconds);
  preempt_agreed_ = out.flagged;
  out.metrics.steps = steps_;
  if (job_.first()) out.metrics.memory_bytes = memory_in_use(job_.device);
  out.metrics.sol_seconds = gemm_rates_.seconds(out.metrics.flops, out.metrics.fp8_flops);
  out.metrics.peak_seconds = peak_rates_.seconds(out.metrics.flops, out.metrics.fp8_flops);
  return out.metrics;
}

std::vector<ArenaSize> Trainer::memory() const {
  std::vector<ArenaSize> all = decoder_->arenas();
  all.push_back({"checkpoint snapshot", snapshot_bytes(trainable_tensors(*decoder_, true))});
  return all;
}

CheckpointState Trainer::state() const {
  CheckpointState s;
  s.step = step_;
  s.consumed_samples = consumed_samples_;
  s.seed = job_.config.train.seed;
  s.config_text = job_.config.text;
  s.base_path = job_.config.model.path;
  s.base_digest = digest_.value;
  s.versions = run_versions(job_);
  s.extra[kTemplateDigest] = job_.encoder->digest();
  if (!job_.adapter_digest.empty()) s.extra[kAdapterDigest] = job_.adapter_digest;
  s.extra[kRecentLosses] = spikes_.save();
  s.extra[kTrainingRows] = rows_;
  s.extra[kUpdates] = updates_.save();
  if (evaluation_due_) s.extra[kEvaluationDue] = "1";
  if (!evaluations_.empty()) s.extra[kEvaluationHistory] = evaluations_.save();
  s.best = best_;
  int rank = 0;
  for (const std::string& mine : job_.ranks->world().host_all_gather(gemm_choices(decoder_->stream())))
    s.extra[kGemmChoices + std::to_string(rank++)] = mine;
  s.tp = job_.mesh().tp();
  s.ep = job_.mesh().ep();
  return s;
}

TrainResult Trainer::run() {
  const double start = now();
  TrainResult result;
  try {
    result = run_steps();
  } catch (const AgreedError&) {
    // All ranks are here. What was being written when the run came to its end still counts.
    try {
      advance_save(Patience::kWait, LastSave::kNo);
    } catch (const Error& error) {
      if (job_.first()) LOG(ERROR) << error.what();
    }
    throw;
  }
  if (recorder_ != nullptr) run_collectively(job_.ranks->world(), [&] { recorder_->flush(); });
  result.steps = step_;
  result.seconds = now() - start;
  return result;
}

TrainResult Trainer::run_steps() {
  TrainResult result;
  if (evaluation_due_) {
    evaluate_and_log(MaySave::kYes);
    result.evaluated = !evaluation_due_;
    result.preempted = preempt_agreed_;
    if (preempt_agreed_) return result;  // the step is saved already
  }
  if (step_ < steps_ && ends_early()) {
    result.ended_early = true;  // as the launch before, or by the evaluation that it had left out
    tell_early_end();
    return result;
  }
  bool broken = false;  // the last step's loss says that the weights may be
  while (step_ < steps_) {
    watch_.enter(Section::kStep, step_);
    const StepMetrics m = train_step();
    broken = updates_.none() || (m.skipped && !std::isfinite(m.loss));
    result.loss = m.loss;
    report(m);
    check_skipped(m);
    if (++result.ran == 1 && job_.first() && job_.device.kind == DeviceKind::kCuda)
      LOG(INFO) << "attention of the first step: " << attention_library(decoder_->stream());
    poll_save();
    if (evaluates_at(step_)) evaluate_and_log(worth_saving(m) ? MaySave::kYes : MaySave::kNo);
    const int64_t every = job_.config.checkpoint.save_steps;
    save_due_ |= every > 0 && step_ % every == 0;
    if (save_due_ && worth_saving(m)) start_save(LastSave::kNo);
    result.ended_early = step_ < steps_ && !broken && ends_early();
    if (result.ended_early) {
      tell_early_end();
      break;
    }
    if (preempt_agreed_) {
      result.preempted = step_ < steps_ || (evaluation_due_ && !broken);
      break;
    }
  }
  check_updated(result);
  watch_.enter(Section::kCheckpoint, step_);
  if (broken) {
    refuse_last_save(result);
    advance_save(Patience::kWait, LastSave::kNo);
    return result;
  }
  start_save(LastSave::kYes);
  advance_save(Patience::kWait, LastSave::kYes);
  return result;
}

}  // namespace pesc
