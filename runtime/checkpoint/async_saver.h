// Asynchronous saving: a checkpoint is written while the training steps continue.
//
// start() returns at once; a background thread copies this rank's pieces to host memory and then writes them.
// Only the next optimizer step waits for the copy; on a GPU the stream waits, on one event, and the host does
// not block. All ranks call poll() at every step boundary. It finds out whether every rank's background work
// is done, and then runs the next phase of the save (runtime/checkpoint/store.h):
//
//   start    begin; starts copy and write in the background
//   poll     when all ranks have written: exchange; starts commit in rank 0's background
//   poll     when committed: finish; returns the report
//
// All communicator calls are made by the caller's thread. While no save is pending, poll() sends nothing.
#pragma once

#include <chrono>
#include <cstdint>
#include <future>
#include <optional>
#include <span>

#include "parallel/communicator.h"
#include "runtime/checkpoint/store.h"

namespace pesc {

class AsyncSaver {
 public:
  // The store outlives the saver.
  explicit AsyncSaver(CheckpointStore& store) : store_(store) {}
  // Waits for this rank's background phase. An uncommitted save leaves a directory that the next launch
  // deletes.
  ~AsyncSaver() = default;
  AsyncSaver(const AsyncSaver&) = delete;
  AsyncSaver& operator=(const AsyncSaver&) = delete;

  // Starts a save, on all ranks, without communication. REQUIRES: no tensor changes before wait_for_copy().
  // Throws InternalError while another save is pending: call wait() first.
  void start(Communicator& world, Stream& stream, const CheckpointState& state,
             std::span<const TrainableTensor> tensors, uint64_t launch_id);

  // Local. After it, work enqueued on `stream` may change the tensors given to start(). Call it before every
  // change of them, such as an optimizer step. Does nothing when no copy is pending.
  void wait_for_copy(Stream& stream);

  // Collective while a save is pending; never waits for the disk. Returns the report once the save is
  // committed. Throws the same IoError on all ranks when it failed; then no save is pending, and existing
  // checkpoints are untouched.
  [[nodiscard]] std::optional<SaveReport> poll(Communicator& world);

  // As poll(), but returns when the save is over; nothing when none was pending. Collective. No single
  // communicator call waits longer than about 0.1 s for the disk, however slow it is.
  [[nodiscard]] std::optional<SaveReport> wait(Communicator& world);

  [[nodiscard]] bool pending() const { return save_.has_value(); }

 private:
  enum class Phase { kWriting, kCommitting };
  [[nodiscard]] std::optional<SaveReport> advance(Communicator& world, std::chrono::milliseconds patience);

  CheckpointStore& store_;
  Phase phase_ = Phase::kWriting;
  std::optional<PendingSave> save_;
  std::future<void> copied_;
  std::future<void> work_;  // after save_: its destructor waits for the thread that uses save_
};

}  // namespace pesc
