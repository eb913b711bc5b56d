#include "launcher/launch_progress.h"

#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <iterator>

#include "configs/schema/manifest.pb.h"
#include "ops/core/check.h"
#include "runtime/checkpoint/run_identity.h"
#include "runtime/checkpoint/store.h"

namespace pesc {
namespace {

RunIdentity identity_of(const std::string& run_dir) {
  try {
    return read_run_identity(posix_filesystem(), run_dir);
  } catch (const Error&) {
    return {};  // the ranks will say what is wrong with it
  }
}

// What a program does by itself, at the same place each time.
constexpr int kCrashes[] = {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL};

// Calls visit(step, generation) for each checkpoint that stands and from which this run would go on.
template <class Visit>
void each_checkpoint(const std::string& run_dir, Visit visit) {
  std::error_code error;
  const RunIdentity run = identity_of(run_dir);
  for (const auto& entry : std::filesystem::directory_iterator(run_dir, error)) {
    const auto step = step_of_directory(entry.path().filename());
    if (!step) continue;
    try {
      const LoadedCheckpoint c = peek_checkpoint(posix_filesystem(), entry.path());
      if (c.state.step == *step && continues(run, *c.manifest)) visit(*step, c.generation);
    } catch (const Error&) {
      continue;
    }
  }
}

}  // namespace

int64_t newest_checkpoint(const std::string& run_dir) {
  int64_t newest = -1;
  each_checkpoint(run_dir, [&](int64_t step, uint64_t) { newest = std::max(newest, step); });
  return newest;
}

bool Progress::launch_ended(const std::string& run_dir, uint64_t generation) {
  int64_t committed = -1;
  each_checkpoint(run_dir, [&](int64_t step, uint64_t by) {
    if (by == generation) committed = std::max(committed, step);
  });
  if (committed <= best_) return false;
  best_ = committed;
  return true;
}

bool RepeatedFailure::launch_ended(const JobEnd& end) {
  Failure now;
  const bool crash =
      std::find(std::begin(kCrashes), std::end(kCrashes), end.code - 128) != std::end(kCrashes);
  if (end.code == static_cast<int>(ExitCode::kInternal) && !end.deaths.empty()) {
    now = {end.code, end.deaths.front().section, end.deaths.front().step};
  } else if (crash && !end.heartbeats.empty()) {
    now = {end.code, end.heartbeats.front().section, end.heartbeats.front().step};
  }
  if (now.section == Section::kSetup) now = {};
  const bool again = now.code != 0 && now == last_;
  last_ = now;
  return again;
}

std::string RepeatedFailure::text() const {
  return str_cat("section ", section_name(last_.section), " after step ", last_.step,
                 " ended with exit code ", last_.code);
}

}  // namespace pesc
