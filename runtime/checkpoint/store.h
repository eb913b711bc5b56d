// The checkpoints of one run directory: saving with the commit protocol of runtime/README.md, finding
// the newest that verifies, pruning.
//
//   step-N/           committed: shard-RRRRR.safetensors, manifest.pb
//   step-N.tmp.G/     being written by generation (launch) G; worth nothing
//   step-N.bad.G/     was damaged or not of this run, and in the way of generation G's step-N; kept for
//   whoever
//                     wants to look
//   step-N.old.G/     pruned by generation G, being unlinked
//   pesc.run          names the run (runtime/checkpoint/run_identity.h)
//
// Removed is only what a manifest says to be of this run, and only where nothing else lies beside the
// checkpoint's files: what the user or another run has put here stays, does not count as kept, and is named
// once.
//
// A save is a chain of phases, local and collective in turn, so that the local ones, which take the time, can
// go to a background thread behind the training steps while every communicator stays with the step loop's
// thread:
//
//   begin     local: which pieces this rank writes, and host memory for them
//   copy      local: the pieces are copied; on a GPU the copies are enqueued
//   hold      local: what the stream does from here on comes after the copies; before it the tensors must not
//             change
//   write     local: waits for the copies; shard written and synced, checksums taken
//   exchange  collective: all parts to all ranks, or the error of one to all
//   commit    local, rank 0 does the work: manifest, syncs, lock, rename, pruning
//   finish    collective: all know whether it was committed
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "runtime/checkpoint/agreement.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/run_identity.h"
#include "runtime/checkpoint/shard.h"
#include "runtime/filesystem/filesystem.h"

namespace pesc {

struct CheckpointOptions {
  int keep = 2;            // newest ones kept; at least 2 (UsageError)
  int64_t keep_every = 0;  // besides, every step divisible by this is kept; 0: none
  // Asked on rank 0 right before the rename: does this launch still own the run directory? Empty: always.
  std::function<bool()> still_ours = {};
};

struct SaveReport {
  bool already_saved = false;      // this very step is the newest good checkpoint; nothing was written
  int64_t bytes = 0;               // of all shards
  std::string directory;           // of the committed checkpoint
  std::vector<std::string> notes;  // what went wrong without harm (pruning), to be logged
};

struct Discovery {
  std::optional<LoadedCheckpoint> checkpoint;
  // One line for each newer directory that was passed over, with the reason.
  std::vector<std::string> damaged;
  std::vector<std::string> others;   // checkpoints of other runs
  std::vector<std::string> ignored;  // named like a checkpoint, but none; on rank 0
  // A fresh start; false also when all that is there is damaged or of other runs, which the caller must not
  // mistake for one.
  [[nodiscard]] bool none_there() const { return !checkpoint && damaged.empty() && others.empty(); }
  // All three, as lines of the log.
  [[nodiscard]] std::vector<std::string> passed_over() const;
};

class CheckpointStore;

// A save in progress. The phases are called in order, each once; `copy`, `write` and `commit` never throw and
// use no communicator. The store, the file system and the tensors outlive it.
class PendingSave {
 public:
  // `copy` and `write` may be called by another thread than the one of begin's stream, which calls `hold`.
  void copy();
  void hold(Stream& stream);
  void write();
  // Throws the same error on all ranks; then the save is over and its directory removed where possible.
  void exchange(Communicator& world);
  void commit();
  [[nodiscard]] SaveReport finish(Communicator& world);
  [[nodiscard]] int64_t step() const { return state_.step; }

 private:
  friend class CheckpointStore;
  PendingSave(CheckpointStore& store, CheckpointState state, uint64_t generation);
  [[nodiscard]] std::string commit_on_rank0();
  [[nodiscard]] proto::Manifest head() const;
  void put_manifest(const std::string& directory);
  void put_aside(const std::string& final);
  [[nodiscard]] std::string context() const;

  CheckpointStore& store_;
  CheckpointState state_;
  uint64_t generation_;
  int rank_ = 0;
  int world_ = 1;
  bool already_saved_ = false;
  std::shared_ptr<HostBuffer> host_;
  std::shared_ptr<HostCopies> copies_;
  ShardSnapshot snapshot_;
  Outcome outcome_;  // of the last local phase
  std::vector<std::string> parts_;
  SaveReport report_;
};

class CheckpointStore {
 public:
  CheckpointStore(FileSystem& files, std::string run_dir, CheckpointOptions options);

  // Local. Takes the host memory for saves of these tensors now, so that the first one does not stop for it.
  void reserve(const Device& device, std::span<const TrainedTensor> tensors);

  // All phases at once; collective. `generation` is the launch's number. Throws the same error on every rank
  // (IoError for a full disk), and then the checkpoints that were there are untouched.
  SaveReport save(Communicator& world, Stream& stream, const CheckpointState& state,
                  std::span<const TrainedTensor> tensors, uint64_t generation);
  // Local. One save at a time (InternalError): the host copy is the store's, and free again when finish()
  // returned or the PendingSave is gone. What `stream` has to do by now is in the checkpoint.
  [[nodiscard]] PendingSave begin(Communicator& world, Stream& stream, const CheckpointState& state,
                                  std::span<const TrainedTensor> tensors, uint64_t generation);

  // Collective. The newest directory of which every byte verifies, the same on all ranks; walks back past
  // damaged ones, but not past one that cannot be read (IoError, the same on all ranks). Changes nothing on
  // disk.
  [[nodiscard]] Discovery find_newest(Communicator& world);

  // Local; rank 0 calls it after find_newest(). The run that goes on from `resumed` (null: from nothing): as
  // the run directory names it, else a new one, which claim() writes down.
  [[nodiscard]] const RunIdentity& identify(const LoadedCheckpoint* resumed, uint64_t generation);

  // Local; rank 0 calls it after find_newest(), before the first save, with what is resumed from (null:
  // nothing). Gives the run directory an identity where it has none. Returns a line for the log, or nothing.
  // IoError.
  [[nodiscard]] std::string claim(const LoadedCheckpoint* resumed, uint64_t generation);

  // See load_checkpoint().
  void load(const LoadedCheckpoint& checkpoint, Stream& stream, std::span<const TrainedTensor> tensors) const;

  // Local; one rank calls it. Removes what earlier generations (< `generation`) left half written or half
  // pruned; no such launch may still be running. Returns what could not be removed, to be logged; what is not
  // ours is in it once.
  std::vector<std::string> clean_leftovers(uint64_t generation);

  [[nodiscard]] const std::string& run_dir() const { return run_dir_; }

 private:
  friend class PendingSave;
  [[nodiscard]] std::string path(const std::string& name) const { return join_path(run_dir_, name); }
  // Looks at the steps before that of `newest` alone. Lines for the log go to `notes`.
  void prune(const proto::Manifest& newest, uint64_t generation, std::vector<std::string>& notes);
  [[nodiscard]] std::string why_not_ours(int64_t step, const proto::Manifest& newest);
  void note_once(const std::string& name, const std::string& line, std::vector<std::string>& notes);

  FileSystem& files_;
  std::string run_dir_;
  CheckpointOptions options_;
  std::shared_ptr<HostBuffer> host_ = std::make_shared<HostBuffer>();  // also held by a save in progress
  std::shared_ptr<HostCopies> copies_ = std::make_shared<HostCopies>();
  RunIdentity run_;
  bool run_is_new_ = false;             // and not written yet
  std::set<int64_t> damaged_;           // steps that find_newest passed over: they do not count as kept
  std::set<int64_t> ours_;              // steps known to be of this run
  std::set<std::string> named_;         // what is not ours and has been said
  std::optional<int64_t> newest_good_;  // committed or verified by this object
};

// Collective. Verifies every byte of one checkpoint directory, its blocks spread over the ranks. Throws the
// same DataError, naming the reason, on every rank when anything is wrong; an IoError, likewise, when the
// disk does not answer, which says nothing about the checkpoint.
[[nodiscard]] LoadedCheckpoint open_checkpoint(FileSystem& files, Communicator& world,
                                               const std::string& directory);

// Local. What the manifest says, after checking it and the sizes of the files that it names; no byte of a
// tensor is read, so it may still be damaged. DataError.
[[nodiscard]] LoadedCheckpoint peek_checkpoint(FileSystem& files, const std::string& directory);

// "step-120" -> 120; nothing for any other name.
[[nodiscard]] std::optional<int64_t> step_of_directory(const std::string& name);

}  // namespace pesc
