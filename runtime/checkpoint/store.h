// The checkpoints of one run directory: saving (the commit protocol is in runtime/README.md), finding the
// newest that verifies, pruning. Implemented in store_save.cc, store_discovery.cc,
// store_load.cc and store_prune.cc.
//
//   step-N/           committed: shard-RRRRR.safetensors, manifest.pb
//   step-N.tmp.G/     being written by launch G; never read
//   step-N.bad.G/     a damaged or foreign directory that launch G found in the place of its step-N, kept for
//                     inspection
//   step-N.old.G/     pruned by launch G, being deleted
//   pesc.run          the identity of the run (runtime/checkpoint/run_identity.h)
//   pesc.best         which checkpoint has the lowest eval loss (runtime/checkpoint/best_checkpoint.h)
//
// A checkpoint is deleted only when its manifest says that it is of this run, and when it contains no files
// other than a checkpoint's. Anything else in the run directory is left alone, does not count as a kept
// checkpoint, and is named in the log once.
//
// A save is a sequence of phases. The local ones, which take the time, may run on a background thread; the
// collective ones run on the step loop's thread, which owns all communicators:
//
//   begin     local: chooses the pieces that this rank writes and reserves host memory for them
//   copy      local: copies the pieces to host memory; on a GPU it enqueues the copies
//   wait      local: makes the stream wait for the copies. REQUIRES: no tensor changes before it
//   write     local: waits for the copies, writes and syncs the shard, takes checksums
//   exchange  collective: gives all parts to all ranks, or the error of one rank to all
//   commit    local, work on rank 0 only: manifest, syncs, check of the lock, rename, mark of the best, pruning
//   finish    collective: tells all ranks whether the checkpoint was committed
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
  int keep = 2;  // newest ones kept; at least 2 (UsageError)
  int64_t keep_every =
      0;  // besides, every step divisible by this is kept (0: none), and CheckpointState::best
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
  // One line, with the reason, for each newer directory that was skipped.
  std::vector<std::string> damaged;
  std::vector<std::string> others;   // checkpoints of other runs
  std::vector<std::string> ignored;  // named like a checkpoint, but none; on rank 0
  // No checkpoint exists. False also when all of them are damaged or of other runs: the caller must not start
  // from scratch then.
  [[nodiscard]] bool none_there() const { return !checkpoint && damaged.empty() && others.empty(); }
  // All three, as lines of the log.
  [[nodiscard]] std::vector<std::string> passed_over() const;
};

class CheckpointStore;

// A save in progress. The phases are called in order, each once; `copy`, `write` and `commit` never throw and
// use no communicator. The store, the file system and the tensors outlive it.
class PendingSave {
 public:
  // `copy` and `write` may be called by another thread than the one of begin's stream, which calls `wait`.
  void copy();
  void wait(Stream& stream);
  void write();
  // Throws the same error on all ranks; then the save is over and its directory removed where possible.
  void exchange(Communicator& world);
  void commit();
  [[nodiscard]] SaveReport finish(Communicator& world);
  [[nodiscard]] int64_t step() const { return state_.step; }

 private:
  friend class CheckpointStore;
  PendingSave(CheckpointStore& store, CheckpointState state, uint64_t launch_id);
  [[nodiscard]] std::string commit_on_rank0();
  [[nodiscard]] proto::Manifest head() const;
  void put_manifest(const std::string& directory);
  void put_aside(const std::string& final);
  [[nodiscard]] std::string context() const;

  CheckpointStore& store_;
  CheckpointState state_;
  uint64_t launch_id_;
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
  void reserve(const Device& device, std::span<const TrainableTensor> tensors);

  // Runs all phases. Collective. `launch_id` is the launch's number. Throws the same error on every rank
  // (IoError for a full disk); existing checkpoints are then untouched.
  SaveReport save(Communicator& world, Stream& stream, const CheckpointState& state,
                  std::span<const TrainableTensor> tensors, uint64_t launch_id);
  // Local. Starts a save of the tensors as they are after the work enqueued on `stream` so far. Throws
  // InternalError while another save is in progress: the host memory is the store's, and is free again after
  // finish() or when the PendingSave is destroyed.
  [[nodiscard]] PendingSave begin(Communicator& world, Stream& stream, const CheckpointState& state,
                                  std::span<const TrainableTensor> tensors, uint64_t launch_id);

  // Collective. Finds the newest checkpoint of which every byte verifies, the same on all ranks. Skips
  // damaged ones; throws IoError, the same on all ranks, for one that cannot be read. Changes nothing on
  // disk.
  [[nodiscard]] Discovery find_newest(Communicator& world);

  // Local; rank 0 calls it after find_newest(). The run that goes on from `resumed` (null: from nothing): as
  // the run directory names it, else a new one, which claim() writes down.
  [[nodiscard]] const RunIdentity& identify(const LoadedCheckpoint* resumed, uint64_t launch_id);

  // Local; rank 0 calls it after find_newest(), before the first save, with what is resumed from (null:
  // nothing). Gives the run directory an identity where it has none. Returns a line for the log, or nothing.
  // IoError.
  [[nodiscard]] std::string claim(const LoadedCheckpoint* resumed, uint64_t launch_id);

  // See load_checkpoint().
  void load(const LoadedCheckpoint& checkpoint, Stream& stream,
            std::span<const TrainableTensor> tensors) const;

  // Local; one rank calls it. Deletes what launches before `launch_id` left half written or half pruned.
  // REQUIRES: no such launch is still running. Returns lines for the log about what it could not delete.
  std::vector<std::string> clean_leftovers(uint64_t launch_id);

  [[nodiscard]] const std::string& run_dir() const { return run_dir_; }

 private:
  friend class PendingSave;
  [[nodiscard]] std::string path(const std::string& name) const { return join_path(run_dir_, name); }
  // Looks at the steps before that of `newest` alone. Lines for the log go to `notes`.
  void prune(const proto::Manifest& newest, uint64_t launch_id, std::vector<std::string>& notes);
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
  std::set<std::string> named_;         // what is not of this run, and was logged already
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
