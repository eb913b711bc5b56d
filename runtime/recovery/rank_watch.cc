#include "runtime/recovery/rank_watch.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "ops/core/check.h"

namespace pesc {
namespace {

// Seconds. With what the supervisor needs to look, less than the 10 s within which a hang is to be noticed.
constexpr double kLeastStepLimit = 8;
constexpr double kStepsOfLimit = 5;
constexpr auto kPoll = std::chrono::milliseconds(500);
// A wake-up this late means that the whole process, or the machine, was suspended.
constexpr double kSuspended = 5;

}  // namespace

RankWatch::RankWatch(int rank, int world, std::function<void(double)> set_wait_limit)
    : rank_(rank), world_(world), set_wait_limit_(std::move(set_wait_limit)) {
  beat_.rank = rank;
  beat_.host = host_name();
  beat_.pid = ::getpid();
}

RankWatch::~RankWatch() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void RankWatch::start(const RecoverySection& limits) {
  limits_ = limits;
  enter(Section::kSetup, 0);
  thread_ = std::thread([this] { guard(); });
}

void RankWatch::report_to(const std::string& run_dir, uint64_t launch_id,
                          const std::vector<FaultPoint>& faults) {
  beat_.launch_id = launch_id;
  {
    const std::lock_guard lock(mutex_);
    run_dir_ = run_dir;
    state_.launch_id = launch_id;
  }
  file_ = std::make_unique<HeartbeatFile>(run_dir, rank_);
  faults_ = FaultPoints(faults, rank_, launch_id);
  enter(beat_.section, beat_.step);
}

double RankWatch::limit_of(Section section) const {
  switch (section) {
    case Section::kStep:
      if (limits_.step_limit > 0) return limits_.step_limit;
      return steps_ == 0 ? limits_.setup_limit : std::max(kLeastStepLimit, kStepsOfLimit * mean_step_);
    case Section::kCheckpoint:
      return limits_.checkpoint_limit;
    case Section::kEval:
      return limits_.eval_limit;
    case Section::kSetup:
      break;
  }
  return limits_.setup_limit;
}

void RankWatch::enter(Section section, int64_t done) {
  const double limit = limit_of(section);
  if (limit != beat_.limit && set_wait_limit_) set_wait_limit_(2 * limit);
  beat_.section = section;
  beat_.step = done;
  beat_.limit = limit;
  ++beat_.count;
  {
    const std::lock_guard lock(mutex_);
    longest_ = deadline_ = 3 * limit;
    state_ = {beat_.launch_id, rank_, beat_.host, beat_.pid, section, done, 0, ""};
  }
  if (file_ != nullptr) file_->write(beat_);
}

void RankWatch::step_took(double seconds) {
  mean_step_ = steps_ <= 1 ? seconds : 0.9 * mean_step_ + 0.1 * seconds;
  ++steps_;
}

void RankWatch::died(int exit_code, const std::string& error) noexcept {
  Death d;
  std::string where;
  {
    const std::lock_guard lock(mutex_);
    d = state_;
    where = run_dir_;
  }
  if (where.empty()) return;
  d.exit_code = exit_code;
  d.error = error;
  write_death(where, d);
}

void RankWatch::guard() {
  using Clock = std::chrono::steady_clock;
  const pid_t parent = ::getppid();
  auto before = Clock::now();
  std::unique_lock lock(mutex_);
  while (!ending_) {
    wake_.wait_for(lock, kPoll);
    const auto now = Clock::now();
    const double passed = std::chrono::duration<double>(now - before).count();
    before = now;
    if (ending_) return;
    if (world_ > 1 && ::getppid() != parent) {
      std::fprintf(stderr, "pesc: rank %d ends: its mpirun is gone\n", rank_);
      ::_exit(static_cast<int>(ExitCode::kHang));
    }
    if (passed > kSuspended) continue;
    deadline_ -= passed;
    if (deadline_ > 0) continue;
    const std::string text = str_cat("no progress in section ", section_name(state_.section), " for ",
                                     longest_, " s after step ", state_.step);
    std::fprintf(stderr, "pesc: rank %d: %s\n", rank_, text.c_str());
    lock.unlock();
    died(static_cast<int>(ExitCode::kHang), text);
    ::_exit(static_cast<int>(ExitCode::kHang));
  }
}

}  // namespace pesc
