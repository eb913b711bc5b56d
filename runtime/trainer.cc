#include "runtime/trainer.h"

#include <glog/logging.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>

#include "ops/attention.h"
#include "ops/gemm.h"
#include "runtime/data/row_record.h"
#include "runtime/evaluation.h"
#include "runtime/gemm_rate.h"
#include "runtime/hf/atomic_file.h"
#include "runtime/terminal.h"
#include "runtime/versions.h"

namespace pesc {
namespace {

// Of a checkpoint's further state. Each rank's kernels: kGemmChoices + its number.
constexpr const char* kRecentLosses = "recent_losses";
constexpr const char* kGemmChoices = "gemm_choices.";
constexpr const char* kTrainingRows = "training_rows";

volatile std::sig_atomic_t preemption_requested = 0;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool finite(const StepMetrics& m) {
  return std::isfinite(m.loss) && std::isfinite(m.grad_norm);
}

}  // namespace

void request_preemption() {
  preemption_requested = 1;
}

Trainer::Trainer(Job& job, RankWatch& watch, uint64_t generation)
    : job_(job), watch_(watch), spikes_(job.config.train.loss_spike_ratio), generation_(generation) {
  terminal_ = writes_to_terminal();
  prepare_run_directory();  // first: a directory that is taken or not ours ends the run before any work
  load_data();
  decoder_ = make_training_decoder(job, job.config.train.micro_batch, job.config.train.seq_len);
  training_step_ = std::make_unique<TrainingStep>(job, *decoder_, train_->tags());
  digest_ = base_digest(job);
  job.base.reset();  // its mapped pages would stay resident beside the arenas
  resume();
  together(job.ranks->world(), [&] { store_->reserve(job.device, trained_tensors(*decoder_, true)); });
  const ExperimentConfig& c = job.config;
  if (c.pesc.mode == TrainMode::kPesc) {
    together(job.ranks->world(), [&] {
      if (!c.routing_record.empty()) {
        recorder_ = std::make_unique<RoutingRecorder>(c.routing_record, generation_, job.mesh().rank(),
                                                      c.pesc.moe.top_k);
      }
      if (!c.routing_replay.empty())
        replay_ = std::make_unique<RoutingReplay>(c.routing_replay, c.pesc.moe.top_k);
    });
  }
  measure_gemm_rate();
}

Trainer::~Trainer() = default;

void Trainer::load_data() {
  const ExperimentConfig& c = job_.config;
  together(job_.ranks->world(), [&] {
    train_ = load_training_data(job_);
    if (!c.data.eval.empty()) {
      eval_ = load_held_out_data(job_);
    }
    sampler_ = std::make_unique<Sampler>(train_->epoch_size(), c.train.seed);
  });
  check_rows_alike();
  if (job_.first()) LOG(INFO) << "training data: " << to_string(train_->report());
  if (job_.first() && eval_) LOG(INFO) << "held-out data: " << to_string(eval_->report());
  steps_ = c.train.steps > 0 ? c.train.steps : sampler_->steps_for(c.train.epochs, c.train.global_batch);
  lr_ = c.train.lr;
  lr_.total = steps_;
  lr_.warmup = c.train.warmup_ratio > 0
                   ? static_cast<int64_t>(std::ceil(c.train.warmup_ratio * static_cast<double>(steps_)))
                   : c.train.warmup_steps;
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

void Trainer::prepare_run_directory() {
  Communicator& world = job_.ranks->world();
  const ExperimentConfig& c = job_.config;
  together(world, [&] {
    if (!job_.first()) return;
    if (generation_ == 0) {
      lock_ = std::make_unique<RunLock>(RunLock::acquire(c.run_dir));
      generation_ = lock_->generation();
    } else if (!still_ours()) {
      throw UsageError(str_cat("run directory '", c.run_dir, "': launch ", generation_,
                               " does not own it, or no longer; start it with pesc launch"));
    }
  });
  const auto mine = static_cast<int64_t>(generation_);
  generation_ = static_cast<uint64_t>(world.host_all_gather(std::span(&mine, 1)).front());
  together(world, [&] { watch_.report_to(c.run_dir, generation_, c.faults); });
  CheckpointOptions options;
  options.keep = static_cast<int>(c.checkpoint.keep);
  options.keep_every = c.checkpoint.keep_every;
  options.still_ours = [this] { return still_ours(); };
  store_ = std::make_unique<CheckpointStore>(posix_filesystem(), c.run_dir, options);
  saver_ = std::make_unique<AsyncSaver>(*store_);
  if (job_.first()) {
    for (const std::string& line : store_->clean_leftovers(generation_)) LOG(WARNING) << line;
  }
}

// Asked on rank 0. Under a supervisor, which holds the lock, a newer launch's number says that it is not.
bool Trainer::still_ours() const noexcept {
  if (lock_ != nullptr) return lock_->still_ours();
  try {
    return RunLock::current_generation(job_.config.run_dir) == generation_;
  } catch (const std::exception&) {
    return false;
  }
}

void Trainer::resume() {
  Communicator& world = job_.ranks->world();
  const ExperimentConfig& c = job_.config;
  Discovery found;
  all_alike(world, [&] { found = store_->find_newest(world); });
  if (job_.first()) {
    for (const std::string& line : found.damaged) LOG(WARNING) << "checkpoint passed over: " << line;
  }
  if (!found.checkpoint && !found.damaged.empty()) {
    throw AgreedError(
        ExitCode::kData,
        str_cat("run_dir '", c.run_dir, "': every checkpoint is damaged; move them away to start afresh"),
        job_.first());
  }
  if (found.checkpoint) {
    const CheckpointState& s = found.checkpoint->state;
    together(world, [&] {
      const std::string note = check_base(s, c.model.path, digest_);
      if (job_.first() && !note.empty()) LOG(INFO) << note;
      check_same_run(s.config_text, c.text);
      check_same_rows(s);
      store_->load(*found.checkpoint, decoder_->stream(), trained_tensors(*decoder_, true));
      decoder_->parameters().refresh_copies(decoder_->stream());
    });
    if (const auto kernels = s.extra.find(kGemmChoices + std::to_string(world.rank()));
        kernels != s.extra.end())
      set_gemm_choices(decoder_->stream(), kernels->second);
    if (const auto losses = s.extra.find(kRecentLosses); losses != s.extra.end())
      together(world, [&] { spikes_.load(losses->second); });
    step_ = s.step;
    started_save_ = committed_step_ = s.step;
    if (job_.first()) LOG(INFO) << "resumed from " << found.checkpoint->directory << " at step " << step_;
  }
  together(world, [&] {
    if (!job_.first()) return;
    // Only now is it sure that this configuration may go on with the run.
    AtomicFile resolved(c.run_dir + "/experiment.textproto");
    resolved.write(c.text);
    resolved.commit();
    metrics_ = std::make_unique<MetricsLog>(c.run_dir + "/metrics.jsonl", generation_);
    metrics_->write({{"kind", "launch"}, {"step", step_}, {"ranks", world.size()}});
  });
  watch_.enter(Section::kSetup, step_);
  watch_.faults().reach(Section::kSetup, step_);
}

void Trainer::measure_gemm_rate() {
  gemm_rate_ = 0;
  job_.ranks->world().barrier();
  for (const double rate : sum_over_ranks(
           job_.ranks->world(), {measured_gemm_rate(decoder_->stream(), job_.config.train.compute, 0.3)})) {
    gemm_rate_ += rate;
  }
}

StepMetrics Trainer::train_step() {
  const TrainSection& t = job_.config.train;
  const Mesh& mesh = job_.mesh();
  StepInput input;
  input.step = step_;
  input.lr = lr_.at(step_);
  input.flag = preemption_requested != 0;
  const BatchPlan plan{t.global_batch, t.micro_batch, mesh.dp()};
  for (int64_t m = 0; m < plan.micro_batches(); ++m) {
    const Range mine = plan.local_range(step_ * t.global_batch, m, mesh.dp_rank());
    input.micro_batches.push_back(make_local_batch(*train_, *sampler_, mine.begin, mine.size()));
  }
  if (recorder_ != nullptr) {
    recorder_->set_step(step_);
    input.tape = recorder_.get();
  } else if (replay_ != nullptr) {
    replay_->set_step(step_);
    input.tape = replay_.get();
  }
  input.poison = watch_.faults().reach(Section::kStep, step_ + 1);
  StepOutput out;
  int retries = 0;
  bool nonfinite = false;
  for (;; ++retries) {
    out = training_step_->run(input, [&](const StepMetrics& m) {
      nonfinite |= !finite(m);
      const Update update = guard(m, retries);
      if (update == Update::kApply) wait_for_copy();
      return update;
    });
    if (out.updated || retries == 1) break;
    watch_.enter(Section::kStep, step_);
    input.poison = watch_.faults().reach(Section::kStep, step_ + 1);
  }
  ++step_;
  out.metrics.retries = retries;
  out.metrics.skipped = !out.updated;
  out.metrics.nonfinite = nonfinite;
  out.metrics.spike = spikes_.is_spike(out.metrics.loss);
  if (out.updated) spikes_.add(out.metrics.loss);
  watch_.step_took(out.metrics.seconds);
  preempt_agreed_ = out.flagged;
  out.metrics.steps = steps_;
  out.metrics.light_seconds = gemm_rate_ > 0 ? out.metrics.flops / gemm_rate_ : 0;
  return out.metrics;
}

// All ranks see the same loss and norm, so all do the same; nothing has been updated. A flipped bit does not
// come twice, so the step is computed once more first.
Update Trainer::guard(const StepMetrics& m, int retries) const {
  const TrainSection& t = job_.config.train;
  const bool spike = spikes_.is_spike(m.loss);
  if (finite(m) && !spike) return Update::kApply;
  const int64_t first = step_ * t.global_batch;
  const std::string rows = str_cat("rows ", first, " to ", first + t.global_batch - 1, " of the stream");
  std::string what = str_cat("step ", step_ + 1, ": the loss is ", m.loss);
  what += finite(m) ? str_cat(", a spike: the usual is ", spikes_.usual())
                    : str_cat(" and the gradient norm ", m.grad_norm);
  if (finite(m) && t.on_loss_spike == OnLossSpike::kWarn) {
    if (job_.first()) LOG(WARNING) << what << "; " << rows;
    return Update::kApply;
  }
  what += "; no rank has updated its weights";
  const char* field = finite(m) ? "train.on_loss_spike: SKIP_SPIKE" : "train.on_nonfinite: SKIP";
  const bool skip = finite(m) ? t.on_loss_spike == OnLossSpike::kSkip : t.on_nonfinite == OnNonfinite::kSkip;
  if (retries == 0 || skip) {
    if (job_.first()) {
      LOG(ERROR) << what << (retries == 0 ? "; once more" : str_cat("; the batch is left out (", field, ")"));
    }
    return Update::kDiscard;
  }
  throw AgreedError(ExitCode::kInternal,
                    str_cat(what, ". Lower train.learning_rate, leave such batches out with ", field,
                            ", or look at ", rows),
                    job_.first());
}

void Trainer::evaluate_and_log() {
  const auto losses =
      held_out_loss(job_, *decoder_, *eval_, job_.config.train.micro_batch, job_.config.train.eval_rows);
  if (!job_.first()) return;
  nlohmann::json record;
  record["kind"] = "held_out";
  record["step"] = step_;
  std::string text;
  for (const auto& [tag, h] : losses) {
    record["held_out_loss"][tag.empty() ? "all" : tag] = h.loss;
    char part[64];
    std::snprintf(part, sizeof(part), "  %s %.4f", tag.empty() ? "all" : tag.c_str(), h.loss);
    text += part;
  }
  metrics_->write(record);
  std::fprintf(stderr, "%sheld-out loss at step %lld:%s\n", terminal_ ? "\r\033[K" : "",
               static_cast<long long>(step_), text.c_str());
}

std::vector<ArenaSize> Trainer::memory() const {
  std::vector<ArenaSize> all = decoder_->arenas();
  all.push_back({"checkpoint snapshot", snapshot_bytes(trained_tensors(*decoder_, true))});
  return all;
}

CheckpointState Trainer::state() const {
  CheckpointState s;
  s.step = step_;
  s.cursor = step_ * job_.config.train.global_batch;
  s.seed = job_.config.train.seed;
  s.config_text = job_.config.text;
  s.base_path = job_.config.model.path;
  s.base_digest = digest_;
  s.versions = library_versions(job_.device);
  s.extra[kRecentLosses] = spikes_.save();
  s.extra[kTrainingRows] = rows_;
  int rank = 0;
  for (const std::string& mine : job_.ranks->world().host_all_gather(gemm_choices(decoder_->stream())))
    s.extra[kGemmChoices + std::to_string(rank++)] = mine;
  s.tp = job_.mesh().tp();
  s.ep = job_.mesh().ep();
  return s;
}

void Trainer::report(const StepMetrics& m) {
  mean_seconds_ = mean_seconds_ == 0 ? m.seconds : 0.95 * mean_seconds_ + 0.05 * m.seconds;
  if (!job_.first()) return;
  metrics_->write(to_json(m));
  const bool line = step_ % job_.config.train.log_every == 0 || step_ == steps_ || step_ == 1;
  if (!terminal_ && !line) return;
  std::fprintf(stderr, "%s%s%s", terminal_ ? "\r\033[K" : "", progress_line(m, mean_seconds_).c_str(),
               terminal_ && step_ != steps_ ? "" : "\n");
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
  if (recorder_ != nullptr) recorder_->flush();
  result.steps = step_;
  result.seconds = now() - start;
  return result;
}

TrainResult Trainer::run_steps() {
  const TrainSection& t = job_.config.train;
  TrainResult result;
  while (step_ < steps_) {
    watch_.enter(Section::kStep, step_);
    const StepMetrics m = train_step();
    result.loss = m.loss;
    report(m);
    if (++result.ran == 1 && job_.first() && job_.device.kind == DeviceKind::kCuda)
      LOG(INFO) << "attention of the first step: " << attention_library(decoder_->stream());
    poll_save();
    if (eval_ != nullptr && t.eval_every > 0 && step_ % t.eval_every == 0) {
      watch_.enter(Section::kEval, step_);
      watch_.faults().reach(Section::kEval, step_);
      evaluate_and_log();
    }
    const int64_t every = job_.config.checkpoint.every_steps;
    if (every > 0 && step_ % every == 0) start_save(LastSave::kNo);
    if (preempt_agreed_) {
      result.preempted = step_ < steps_;
      break;
    }
  }
  watch_.enter(Section::kCheckpoint, step_);
  start_save(LastSave::kYes);
  advance_save(Patience::kWait, LastSave::kYes);
  return result;
}

}  // namespace pesc
