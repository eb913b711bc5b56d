// The commit protocol of runtime/README.md: its safety depends on the order of the operations below.
#include <algorithm>
#include <map>
#include <utility>

#include "runtime/checkpoint/best_checkpoint.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/store.h"

namespace pesc {
namespace {

std::string step_name(int64_t step) {
  return str_cat("step-", step);
}
std::string side_name(int64_t step, const char* what, uint64_t launch_id) {
  return str_cat("step-", step, '.', what, '.', launch_id);
}

proto::Manifest manifest_of(const CheckpointState& state, const std::string& run, int world,
                            uint64_t launch_id) {
  proto::Manifest m;
  m.set_format_version(kManifestVersion);
  m.set_run_id(run);
  m.set_step(state.step);
  m.set_launch_id(launch_id);
  m.mutable_layout()->set_world_size(world);
  m.mutable_layout()->set_tp(state.tp);
  m.mutable_layout()->set_ep(state.ep);
  m.set_consumed_samples(state.consumed_samples);
  m.set_seed(state.seed);
  m.set_config_text(state.config_text);
  m.mutable_base()->set_path(state.base_path);
  m.mutable_base()->set_digest(state.base_digest);
  for (const auto& [name, value] : state.versions) (*m.mutable_versions())[name] = value;
  for (const auto& [name, value] : state.extra) (*m.mutable_extra())[name] = value;
  if (state.best) {
    m.mutable_best()->set_step(state.best->step);
    m.mutable_best()->set_eval_loss(state.best->eval_loss);
  }
  return m;
}

// Joins the ranks' parts: the pieces of one tensor come together under one entry.
void merge_parts(const std::vector<std::string>& parts, proto::Manifest& into) {
  std::map<std::pair<std::string, int>, proto::ManifestTensor*> tensors;
  for (const std::string& bytes : parts) {
    proto::Manifest part;
    PESC_CHECK(part.ParseFromString(bytes), "a rank's part of the manifest does not parse");
    const int first_file = into.files_size();
    for (const auto& file : part.files()) *into.add_files() = file;
    for (const auto& tensor : part.tensors()) {
      auto& entry = tensors[{tensor.name(), tensor.kind()}];
      if (entry == nullptr) {
        entry = into.add_tensors();
        *entry = tensor;
        entry->clear_pieces();
      }
      PESC_CHECK(entry->rows() == tensor.rows() && entry->cols() == tensor.cols(), tensor.name(),
                 ": the ranks disagree about its global shape");
      for (const auto& piece : tensor.pieces()) {
        auto& added = *entry->add_pieces();
        added = piece;
        added.set_file(first_file + piece.file());
      }
    }
  }
}

}  // namespace

PendingSave::PendingSave(CheckpointStore& store, CheckpointState state, uint64_t launch_id)
    : store_(store), state_(std::move(state)), launch_id_(launch_id) {}

std::string PendingSave::context() const {
  return str_cat("checkpoint of step ", state_.step, " not saved");
}

void PendingSave::copy() {
  if (already_saved_) return;
  outcome_ = attempt([&] {
    snapshot_.copy(*copies_);
    return std::string();
  });
}

void PendingSave::wait(Stream& stream) {
  if (!already_saved_) copies_->wait(stream);
}

void PendingSave::write() {
  if (already_saved_ || !outcome_.ok()) return;
  outcome_ = attempt([&] {
    copies_->synchronize();
    const std::string directory = store_.path(side_name(state_.step, "tmp", launch_id_));
    store_.files_.create_directory(directory);
    return snapshot_.write(store_.files_, directory, shard_name(rank_)).SerializeAsString();
  });
}

void PendingSave::exchange(Communicator& world) {
  if (already_saved_) return;
  const auto outcomes = gather_outcomes(world, outcome_);
  const bool failed = std::any_of(outcomes.begin(), outcomes.end(), [](const Outcome& o) { return !o.ok(); });
  if (failed && rank_ == 0) {
    // Every rank has closed its file by now. A failure here leaves rubbish that the next launch cleans.
    (void)attempt([&] {
      remove_checkpoint_folder(store_.files_, store_.path(side_name(state_.step, "tmp", launch_id_)));
      return std::string();
    });
  }
  throw_first_error(outcomes, context());
  if (rank_ == 0)
    for (const Outcome& o : outcomes) parts_.push_back(o.text);
  outcome_ = {};
}

void PendingSave::commit() {
  if (already_saved_ || rank_ != 0) return;
  outcome_ = attempt([&] { return commit_on_rank0(); });
  parts_.clear();
}

proto::Manifest PendingSave::head() const {
  return manifest_of(state_, store_.run_.id, world_, launch_id_);
}

void PendingSave::put_manifest(const std::string& directory) {
  proto::Manifest manifest = head();
  merge_parts(parts_, manifest);
  try {
    validate_manifest(manifest, "the manifest to be written");
  } catch (const DataError& error) {
    throw InternalError(error.what());  // ShardSpecs that do not cover their tensors: ours, not the user's
  }
  report_.bytes = 0;
  for (const auto& file : manifest.files()) report_.bytes += file.size();
  const std::string bytes = serialize_manifest(manifest);
  PESC_CHECK(static_cast<int64_t>(bytes.size()) <= kMaxManifestBytes, "a manifest of ", bytes.size(),
             " bytes");
  const auto file = store_.files_.create_file(join_path(directory, kManifestName));
  file->append(std::as_bytes(std::span(bytes)));
  file->sync();
  file->close();
}

// Whatever has the name of the new checkpoint is kept under another one.
void PendingSave::put_aside(const std::string& final) {
  FileSystem& files = store_.files_;
  std::string bad = store_.path(side_name(state_.step, "bad", launch_id_));
  while (files.exists(bad)) bad += "0";  // another number: not of a launch that there is
  files.rename(final, bad);
  report_.notes.push_back(str_cat("'", final, "' was in the way of this checkpoint and is now '", bad, "'"));
}

std::string PendingSave::commit_on_rank0() {
  FileSystem& files = store_.files_;
  const std::string tmp = store_.path(side_name(state_.step, "tmp", launch_id_));
  const std::string final = store_.path(step_name(state_.step));
  try {
    files.create_directory(tmp);  // nobody has done so when no rank had anything to write
    put_manifest(tmp);
    files.sync_directory(tmp);
    if (store_.options_.still_ours && !store_.options_.still_ours())
      throw IoError(str_cat("another launch has taken over the run directory '", store_.run_dir_,
                            "' (this one is launch ", launch_id_, ")"));
    if (files.exists(final)) put_aside(final);
    files.rename(tmp, final);
  } catch (...) {
    (void)attempt([&] {
      remove_checkpoint_folder(files, tmp);
      return std::string();
    });
    throw;
  }
  files.sync_directory(store_.run_dir_);
  store_.damaged_.erase(state_.step);
  store_.ours_.insert(state_.step);
  store_.named_.erase(step_name(state_.step));
  // From here on the checkpoint stands; what goes wrong is only worth a note.
  const Outcome pruned = attempt([&] {
    if (state_.best && state_.best->step == state_.step)
      put_best_mark(files, store_.run_dir_, state_.best, launch_id_);
    store_.prune(head(), launch_id_, report_.notes);
    return std::string();
  });
  if (!pruned.ok()) report_.notes.push_back(str_cat("old checkpoints not removed: ", pruned.text));
  for (std::string& note : store_.clean_leftovers(launch_id_)) report_.notes.push_back(std::move(note));
  return str_cat(report_.bytes);
}

SaveReport PendingSave::finish(Communicator& world) {
  report_.directory = store_.path(step_name(state_.step));
  report_.already_saved = already_saved_;
  if (already_saved_) return report_;
  host_.reset();
  const auto outcomes = gather_outcomes(world, outcome_);
  throw_first_error(outcomes, context());
  report_.bytes = std::stoll(outcomes[0].text);
  store_.newest_good_ = state_.step;
  store_.damaged_.erase(state_.step);
  return report_;
}

CheckpointStore::CheckpointStore(FileSystem& files, std::string run_dir, CheckpointOptions options)
    : files_(files), run_dir_(std::move(run_dir)), options_(std::move(options)) {
  if (options_.keep < 2)
    throw UsageError(str_cat("checkpoints to keep: ", options_.keep,
                             ", but at least 2 are needed to survive a damaged one"));
  if (options_.keep_every < 0)
    throw UsageError(str_cat("keep_every is ", options_.keep_every, "; it must not be negative"));
}

PendingSave CheckpointStore::begin(Communicator& world, Stream& stream, const CheckpointState& state,
                                   std::span<const TrainableTensor> tensors, uint64_t launch_id) {
  PESC_CHECK(state.step >= 0 && state.consumed_samples >= 0, "step ", state.step, ", consumed_samples ",
             state.consumed_samples);
  PendingSave save(*this, state, launch_id);
  save.rank_ = world.rank();
  save.world_ = world.size();
  save.already_saved_ = newest_good_ == state.step;
  if (save.already_saved_) return save;
  PESC_CHECK(host_.use_count() == 1, "step ", state.step, ": the save before it is still in progress");
  save.host_ = host_;
  save.copies_ = copies_;
  save.snapshot_ = ShardSnapshot(stream.device(), tensors, *host_);
  copies_->wait_stream(stream);
  return save;
}

void CheckpointStore::reserve(const Device& device, std::span<const TrainableTensor> tensors) {
  static_cast<void>(host_->reserve(device, snapshot_bytes(tensors)));
}

SaveReport CheckpointStore::save(Communicator& world, Stream& stream, const CheckpointState& state,
                                 std::span<const TrainableTensor> tensors, uint64_t launch_id) {
  PendingSave pending = begin(world, stream, state, tensors, launch_id);
  pending.copy();
  pending.wait(stream);
  pending.write();
  pending.exchange(world);
  pending.commit();
  return pending.finish(world);
}

std::optional<int64_t> step_of_directory(const std::string& name) {
  constexpr std::string_view kPrefix = "step-";
  if (!name.starts_with(kPrefix)) return {};
  const std::string digits = name.substr(kPrefix.size());
  if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != std::string::npos)
    return {};
  if (digits.size() > 1 && digits[0] == '0') return {};
  return std::stoll(digits);
}

}  // namespace pesc
