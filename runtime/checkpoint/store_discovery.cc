// Verification. Rank 0 reads the manifest for all; the blocks of all files, laid end to end, are split over
// the ranks.
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "runtime/checkpoint/best_checkpoint.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/run_identity.h"
#include "runtime/checkpoint/store.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

// Collective: rank 0's bytes, or rank 0's error, on all ranks.
Outcome from_rank0(Communicator& world, const std::function<std::string()>& read) {
  return gather_outcomes(world, world.rank() == 0 ? attempt(read) : Outcome{})[0];
}

// The error of a checkpoint that cannot be used: damage wherever any rank has seen some.
[[noreturn]] void throw_unusable(const std::string& directory, const Outcome& o, const std::string& seen_by) {
  const std::string text = str_cat("checkpoint '", directory, "': ", o.text, seen_by);
  if (o.code == ExitCode::kData) throw DataError(text);
  if (o.code == ExitCode::kIo) throw IoError(text);
  throw InternalError(text);
}

int64_t blocks_of(const proto::Manifest& manifest) {
  int64_t blocks = 0;
  for (const auto& file : manifest.files()) blocks += file.block_checksums_size();
  return blocks;
}

// A file that is not there, too short or no file is damage, and so is whatever its bytes say. A disk that
// does not answer is none: the next attempt may read the very same checkpoint.
bool is_damage(const IoError& error) {
  return error.number == 0 || error.number == ENOENT || error.number == ENOTDIR || error.number == EISDIR ||
         error.number == ELOOP;
}

// Runs `read` and turns damage into a DataError; other I/O errors stay.
std::string with_damage(const std::function<std::string()>& read) {
  try {
    return read();
  } catch (const IoError& error) {
    if (is_damage(error)) throw DataError(error.what());
    throw IoError(str_cat(error.what(),
                          "; nothing says that it is damaged, so no older one is taken: try again, "
                          "or move it away if the disk has lost it"),
                  error.number);
  }
}

void check_size(const ReadableFile& file, const proto::ManifestFile& entry) {
  if (file.size() != entry.size())
    throw DataError(str_cat(entry.name(), " has ", file.size(), " bytes instead of ", entry.size()));
}

// Local: this rank's share of the blocks.
void verify_blocks(FileSystem& files, const std::string& directory, const proto::Manifest& manifest,
                   Range mine) {
  std::vector<std::byte> buffer;
  int64_t first = 0;  // number of the file's first block
  for (const auto& entry : manifest.files()) {
    const int64_t begin = std::max(mine.begin, first) - first;
    const int64_t end = std::min(mine.end, first + entry.block_checksums_size()) - first;
    first += entry.block_checksums_size();
    if (begin >= end) continue;
    const auto file = files.open(join_path(directory, entry.name()));
    check_size(*file, entry);
    buffer.resize(static_cast<size_t>(std::min(entry.size(), kChecksumBlockBytes)));
    for (int64_t block = begin; block < end; ++block) {
      const int64_t offset = block * kChecksumBlockBytes;
      const auto bytes =
          std::span(buffer).first(static_cast<size_t>(std::min(kChecksumBlockBytes, entry.size() - offset)));
      file->read(offset, bytes);
      if (XXH3_64bits(bytes.data(), bytes.size()) != entry.block_checksums(static_cast<int>(block)))
        throw DataError(str_cat(entry.name(), ": bytes ", offset, " to ",
                                offset + static_cast<int64_t>(bytes.size()),
                                " have another checksum than when they were written"));
    }
  }
}

CheckpointState state_of(const proto::Manifest& m) {
  CheckpointState state;
  state.step = m.step();
  state.consumed_samples = m.consumed_samples();
  state.seed = m.seed();
  state.config_text = m.config_text();
  state.base_path = m.base().path();
  state.base_digest = m.base().digest();
  state.extra = {m.extra().begin(), m.extra().end()};
  state.versions = {m.versions().begin(), m.versions().end()};
  if (m.has_best()) state.best = {m.best().step(), m.best().eval_loss()};
  state.tp = m.layout().tp();
  state.ep = m.layout().ep();
  return state;
}

LoadedCheckpoint described(const std::string& directory, std::shared_ptr<const proto::Manifest> manifest) {
  LoadedCheckpoint checkpoint;
  checkpoint.directory = directory;
  checkpoint.state = state_of(*manifest);
  checkpoint.launch_id = manifest->launch_id();
  checkpoint.world = manifest->layout().world_size();
  for (const auto& file : manifest->files()) checkpoint.bytes += file.size();
  checkpoint.manifest = std::move(manifest);
  return checkpoint;
}

// Whether the step's folder has a manifest. What follows gives way to the error that it is for, so that a folder which
// cannot be read has none.
bool holds_manifest(FileSystem& files, const std::string& run_dir, int64_t step) {
  try {
    return files.exists(join_path(join_path(run_dir, str_cat("step-", step)), kManifestName));
  } catch (const IoError&) {
    return false;
  }
}

// Nothing where the folder cannot be listed.
std::optional<std::vector<std::string>> names_in(FileSystem& files, const std::string& directory) {
  try {
    return files.list(directory);
  } catch (const IoError&) {
    return std::nullopt;
  }
}

// Nothing also where the mark cannot be read.
std::optional<int64_t> best_step(FileSystem& files, const std::string& run_dir) {
  std::optional<BestCheckpoint> best;
  try {
    best = read_best_mark(files, run_dir);
  } catch (const DataError&) {
  } catch (const IoError&) {
  }
  if (!best || !holds_manifest(files, run_dir, best->step)) return std::nullopt;
  return best->step;
}

// What to name in the place of a run's folder; empty where `directory` is none.
std::string checkpoints_of_run(FileSystem& files, const std::string& directory) {
  // A link to a folder is followed.
  const FileKind kind = files.kind(directory);
  if (kind == FileKind::kNone || kind == FileKind::kFile) return "";
  const auto names = names_in(files, directory);
  std::optional<int64_t> newest;
  for (const std::string& name : names.value_or(std::vector<std::string>{})) {
    const auto step = step_of_directory(name);
    if (step && step > newest && holds_manifest(files, directory, *step)) newest = step;
  }
  if (!newest && !files.exists(join_path(directory, kRunFile))) return "";
  std::string text = "is the folder of a run, not a checkpoint";
  if (!names) return text + "; name a checkpoint inside of it";
  if (!newest) return text + ", and has no checkpoint yet";
  const auto quoted = [&](int64_t step) {
    return in_quotes(join_path(directory, str_cat("step-", step)), kUncut);
  };
  text += str_cat("; name a checkpoint inside of it: ", quoted(*newest), " is the newest");
  if (const auto best = best_step(files, directory)) text += str_cat(", ", quoted(*best), " the best");
  return text;
}

std::string read_manifest_bytes(FileSystem& files, const std::string& directory) {
  try {
    return files.read_all(join_path(directory, kManifestName), kMaxManifestBytes);
  } catch (const IoError& error) {
    if (error.number != ENOENT) throw;
    const std::string text = checkpoints_of_run(files, directory);
    if (text.empty()) throw;
    throw DataError(text);
  }
}

}  // namespace

LoadedCheckpoint peek_checkpoint(FileSystem& files, const std::string& directory) {
  try {
    auto manifest = std::make_shared<const proto::Manifest>(
        parse_manifest(read_manifest_bytes(files, directory), kManifestName));
    for (const auto& entry : manifest->files())
      check_size(*files.open(join_path(directory, entry.name())), entry);
    return described(directory, std::move(manifest));
  } catch (const IoError& error) {
    const std::string text = str_cat("checkpoint '", directory, "': ", error.what());
    if (is_damage(error)) throw DataError(text);
    throw IoError(text, error.number);
  } catch (const DataError& error) {
    throw DataError(str_cat("checkpoint '", directory, "': ", error.what()));
  }
}

namespace {

// Collective: the same on all ranks.
std::shared_ptr<const proto::Manifest> read_manifest(FileSystem& files, Communicator& world,
                                                     const std::string& directory) {
  const std::string path = join_path(directory, kManifestName);
  const Outcome bytes =
      from_rank0(world, [&] { return with_damage([&] { return read_manifest_bytes(files, directory); }); });
  if (!bytes.ok()) throw_unusable(directory, bytes, "");
  // The same bytes on all ranks: what fails here fails on all.
  return std::make_shared<const proto::Manifest>(parse_manifest(bytes.text, path));
}

// Collective.
LoadedCheckpoint verified(FileSystem& files, Communicator& world, const std::string& directory,
                          std::shared_ptr<const proto::Manifest> manifest) {
  const Range mine = split_range(blocks_of(*manifest), world.size(), world.rank());
  const auto verify = [&] {
    verify_blocks(files, directory, *manifest, mine);
    return std::string();
  };
  const auto outcomes = gather_outcomes(world, attempt([&] { return with_damage(verify); }));
  const auto first = [&](auto wanted) { return std::find_if(outcomes.begin(), outcomes.end(), wanted); };
  auto failed = first([](const Outcome& o) { return o.code == ExitCode::kData; });
  if (failed == outcomes.end()) failed = first([](const Outcome& o) { return !o.ok(); });
  if (failed != outcomes.end())
    throw_unusable(directory, *failed, str_cat(" (seen by rank ", failed - outcomes.begin(), ")"));
  return described(directory, std::move(manifest));
}

}  // namespace

LoadedCheckpoint open_checkpoint(FileSystem& files, Communicator& world, const std::string& directory) {
  return verified(files, world, directory, read_manifest(files, world, directory));
}

std::vector<std::string> Discovery::passed_over() const {
  std::vector<std::string> lines;
  for (const std::string& line : damaged) lines.push_back("checkpoint passed over: " + line);
  for (const std::string& line : others) lines.push_back("checkpoint passed over: " + line);
  for (const std::string& line : ignored) lines.push_back("ignored: " + line);
  return lines;
}

Discovery CheckpointStore::find_newest(Communicator& world) {
  Discovery found;
  std::vector<int64_t> steps;
  const Outcome run = from_rank0(world, [&] { return to_string(read_run_identity(files_, run_dir_)); });
  if (run.code == ExitCode::kData) throw DataError(run.text);
  if (!run.ok()) throw IoError(run.text);
  run_ = run.text.empty() ? RunIdentity{} : parse_run_identity(run.text, path(kRunFile));
  const Outcome listing = from_rank0(world, [&] {
    std::string names;
    if (!files_.exists(run_dir_)) return names;
    for (const std::string& name : files_.list(run_dir_)) {
      const bool step = step_of_directory(name).has_value();
      std::string why = step ? why_no_checkpoint(files_, path(name))
                        : looks_like_checkpoint_name(name)
                            ? "checkpoints are named step-N, N without zeros before it"
                            : "";
      if (!why.empty()) {
        found.ignored.push_back(str_cat("'", path(printable(name)), "' is no checkpoint: ", why));
        named_.insert(name);
      } else if (step) {
        names += name + '\n';
      }
    }
    return names;
  });
  if (!listing.ok()) throw IoError(listing.text);
  for (size_t begin = 0; begin < listing.text.size();) {
    const size_t end = listing.text.find('\n', begin);
    steps.push_back(*step_of_directory(listing.text.substr(begin, end - begin)));
    begin = end + 1;
  }
  std::sort(steps.rbegin(), steps.rend());

  damaged_.clear();
  newest_good_.reset();
  for (const int64_t step : steps) {
    const std::string directory = path(str_cat("step-", step));
    try {
      const auto manifest = read_manifest(files_, world, directory);
      if (!continues(run_, *manifest)) {
        found.others.push_back(str_cat("'", directory, "' is of another run than this one, which ",
                                       path(kRunFile),
                                       " names; to go on from it, give it a run_dir of its own"));
        named_.insert(str_cat("step-", step));
        continue;
      }
      if (manifest->step() != step)
        throw DataError(str_cat("checkpoint '", directory, "' is of step ", manifest->step(),
                                ", and its name says another"));
      found.checkpoint = verified(files_, world, directory, manifest);
      newest_good_ = step;
      return found;
    } catch (const DataError& error) {
      found.damaged.emplace_back(error.what());
      damaged_.insert(step);
    }
  }
  return found;
}

}  // namespace pesc
