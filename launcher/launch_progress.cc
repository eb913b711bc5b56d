#include "launcher/launch_progress.h"

#include <algorithm>
#include <filesystem>

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

}  // namespace pesc
