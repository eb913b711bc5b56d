// Removing: old checkpoints of this run, and what its earlier launches have left half done. Everything else
// in the run directory belongs to somebody else.
#include <algorithm>
#include <utility>

#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/store.h"
#include "runtime/text/printable.h"

namespace pesc {

const RunIdentity& CheckpointStore::identify(const LoadedCheckpoint* resumed, uint64_t launch_id) {
  if (run_.id.empty()) {
    run_ = new_run_identity(resumed == nullptr ? nullptr : resumed->manifest.get(), launch_id);
    run_is_new_ = true;
  }
  return run_;
}

std::string CheckpointStore::claim(const LoadedCheckpoint* resumed, uint64_t launch_id) {
  const proto::Manifest* manifest = resumed == nullptr ? nullptr : resumed->manifest.get();
  std::string note;
  static_cast<void>(identify(resumed, launch_id));
  if (run_is_new_) {
    write_run_identity(files_, run_dir_, run_, launch_id);
    run_is_new_ = false;
    if (run_.from_step >= 0)
      note = str_cat("'", resumed->directory,
                     "' is of another run; this run goes on from it as a run of its own, ",
                     "and leaves it where it is");
  }
  if (manifest != nullptr && wrote(run_, *manifest, *manifest)) ours_.insert(manifest->step());
  return note;
}

void CheckpointStore::note_once(const std::string& name, const std::string& line,
                                std::vector<std::string>& notes) {
  if (named_.insert(name).second) notes.push_back(line);
}

// Empty: it is, and nothing of anybody else's lies in it.
std::string CheckpointStore::why_not_ours(int64_t step, const proto::Manifest& newest) {
  const std::string directory = path(str_cat("step-", step));
  if (files_.kind(directory) != FileKind::kDirectory) return "it is not a folder";
  const std::string manifest = join_path(directory, kManifestName);
  if (!files_.exists(manifest)) return str_cat("it holds no ", kManifestName);
  if (const std::string name = foreign_name(files_, directory); !name.empty())
    return str_cat("it holds '", printable(name), "', which pesc has not written");
  try {
    const proto::Manifest m = parse_manifest(files_.read_all(manifest, kMaxManifestBytes), kManifestName);
    if (m.step() != step) return str_cat("it holds the checkpoint of step ", m.step());
    if (!wrote(run_, m, newest)) return "it is of another run";
  } catch (const DataError& error) {
    return error.what();
  }
  return {};
}

void CheckpointStore::prune(const proto::Manifest& newest, uint64_t launch_id,
                            std::vector<std::string>& notes) {
  std::vector<int64_t> steps;  // before the newest
  for (const std::string& name : files_.list(run_dir_))
    if (const auto step = step_of_directory(name); step && *step < newest.step() && !damaged_.contains(*step))
      steps.push_back(*step);
  std::sort(steps.rbegin(), steps.rend());
  const auto ours = [&](int64_t step) {
    std::string why;
    try {
      why = why_not_ours(step, newest);
    } catch (const IoError& error) {
      why = error.what();
    }
    if (why.empty()) return true;
    const std::string name = str_cat("step-", step);
    note_once(name, str_cat("'", path(name), "' is not removed, nor counted as kept: ", why), notes);
    return false;
  };
  int64_t kept = 1;
  std::vector<std::string> doomed;
  for (const int64_t step : steps) {
    if (kept < options_.keep) {
      if (!ours_.contains(step) && !ours(step)) continue;
      ours_.insert(step);
      ++kept;
      continue;
    }
    if (options_.keep_every > 0 && step % options_.keep_every == 0) continue;
    if (newest.has_best() && step == newest.best().step()) continue;
    if (!ours(step)) continue;
    const std::string old = path(str_cat("step-", step, ".old.", launch_id));
    remove_checkpoint_folder(files_, old);
    files_.rename(path(str_cat("step-", step)), old);
    ours_.erase(step);
    doomed.push_back(old);
  }
  if (doomed.empty()) return;
  // Without this a crash could bring back the name of a directory that has lost files.
  files_.sync_directory(run_dir_);
  for (const std::string& old : doomed) remove_checkpoint_folder(files_, old);
}

std::vector<std::string> CheckpointStore::clean_leftovers(uint64_t launch_id) {
  std::vector<std::string> notes;
  std::vector<std::string> names;
  const Outcome listed = attempt([&] {
    if (files_.exists(run_dir_)) names = files_.list(run_dir_);
    return std::string();
  });
  if (!listed.ok()) notes.push_back(str_cat("leftovers not looked for: ", listed.text));
  for (const std::string& name : names) {
    const size_t dot = name.find('.');
    if (dot == std::string::npos || !step_of_directory(name.substr(0, dot))) continue;
    const std::string rest = name.substr(dot);
    if (!rest.starts_with(".tmp.") && !rest.starts_with(".old.")) continue;
    const std::string number = rest.substr(5);
    if (number.empty() || number.size() > 19 || number.find_first_not_of("0123456789") != std::string::npos)
      continue;
    if (std::stoull(number) >= launch_id) continue;
    const Outcome removed = attempt([&] {
      remove_checkpoint_folder(files_, path(name));
      return std::string();
    });
    if (removed.ok()) {
      named_.erase(name);
    } else {
      note_once(name, str_cat("leftover not removed: ", removed.text), notes);
    }
  }
  return notes;
}

}  // namespace pesc
