#include "launcher/launch_progress.h"

#include <algorithm>
#include <filesystem>

#include "ops/core/check.h"
#include "runtime/checkpoint/store.h"

namespace pesc {
namespace {

// Calls visit(step, generation) for each checkpoint that stands.
template <class Visit>
void each_checkpoint(const std::string& run_dir, Visit visit) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(run_dir, error)) {
    const auto step = step_of_directory(entry.path().filename());
    if (!step) continue;
    try {
      const LoadedCheckpoint c = peek_checkpoint(posix_filesystem(), entry.path());
      if (c.state.step == *step) visit(*step, c.generation);
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

}  // namespace pesc
