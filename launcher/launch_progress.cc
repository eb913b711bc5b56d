#include "launcher/launch_progress.h"

#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <utility>

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

bool is_crash(int code) {
  return std::find(std::begin(kCrashes), std::end(kCrashes), code - 128) != std::end(kCrashes);
}

// The lines without their numbers, which are of processes, jobs and addresses, and others each time.
std::set<std::string> words_of(const JobEnd& end) {
  std::set<std::string> words;
  for (const auto& [rank, lines] : end.last_lines) {
    for (const std::string& line : lines) {
      std::string text;
      bool has_letter = false;
      for (const char c : line) {
        if (c >= '0' && c <= '9') continue;
        has_letter |= (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        text += c;
      }
      if (has_letter) words.insert(text);
    }
  }
  return words;
}

// How many of the ranks speak before mpirun ends them, and which lines are the last, is chance: half of the
// lines of the launch that said less must be the other's.
bool same_words(const std::set<std::string>& a, const std::set<std::string>& b) {
  size_t common = 0;
  for (const std::string& line : a) common += b.count(line);
  return 2 * common >= std::min(a.size(), b.size());
}

// Calls visit(step, launch id) for each checkpoint that stands and from which this run would go on.
template <class Visit>
void each_checkpoint(const std::string& run_dir, Visit visit) {
  std::error_code error;
  const RunIdentity run = identity_of(run_dir);
  for (const auto& entry : std::filesystem::directory_iterator(run_dir, error)) {
    const auto step = step_of_directory(entry.path().filename());
    if (!step) continue;
    try {
      const LoadedCheckpoint c = peek_checkpoint(posix_filesystem(), entry.path());
      if (c.state.step == *step && continues(run, *c.manifest)) visit(*step, c.launch_id);
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

bool Progress::launch_ended(const std::string& run_dir, uint64_t launch_id) {
  int64_t committed = -1;
  each_checkpoint(run_dir, [&](int64_t step, uint64_t by) {
    if (by == launch_id) committed = std::max(committed, step);
  });
  if (committed <= best_) return false;
  best_ = committed;
  return true;
}

bool RepeatedFailure::launch_ended(const JobEnd& end) {
  Failure now;
  if (end.code == static_cast<int>(ExitCode::kInternal) && !end.deaths.empty()) {
    now = {end.code, end.deaths.front().section, end.deaths.front().step};
  } else if (is_crash(end.code) && !end.heartbeats.empty()) {
    now = {end.code, end.heartbeats.front().section, end.heartbeats.front().step};
  }
  if (now.section == Section::kSetup) now = {};
  const bool again = now.code != 0 && now == last_;
  last_ = now;
  return again;
}

bool RepeatedStart::launch_ended(const JobEnd& end) {
  const bool of_mpi = (end.code > 0 && end.code < static_cast<int>(ExitCode::kUsage)) || is_crash(end.code);
  const bool at_start = end.heartbeats.empty() && end.deaths.empty() && end.hang.empty();
  const int before = std::exchange(code_, of_mpi && at_start ? end.code : 0);
  const std::set<std::string> said = std::exchange(words_, words_of(end));
  return code_ != 0 && code_ == before && same_words(said, words_);
}

std::string RepeatedFailure::text() const {
  return str_cat("section ", section_name(last_.section), " after step ", last_.step,
                 " ended with exit code ", last_.code);
}

}  // namespace pesc
