// Saving behind the training steps.
//
// start() returns at once; a background thread copies this rank's pieces to host memory and then writes them.
// The next forward and backward go on meanwhile; only the optimizer step waits for the copy: on a GPU the
// stream does, on one event, and not the host. poll(), which
// all ranks call at every step boundary, agrees on whether every rank's background work is done and then does
// the next phase of the save (runtime/checkpoint/store.h):
//
//   start    begin; copy and write go to the background
//   poll     all ranks have written: exchange; commit goes to rank 0's background
//   poll     committed: finish, and the report comes back
//
// Every communicator call is made by the caller's thread. While nothing is pending, poll() sends nothing.
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
  // Waits for this rank's background phase, so that nothing writes any more; what was not committed is left
  // behind as a directory that the next launch cleans.
  ~AsyncSaver() = default;
  AsyncSaver(const AsyncSaver&) = delete;
  AsyncSaver& operator=(const AsyncSaver&) = delete;

  // Called on all ranks, without communication. The device tensors may change, by work on `stream`, after
  // wait_for_copy(), not before. One save at a time (InternalError): wait() first.
  void start(Communicator& world, Stream& stream, const CheckpointState& state,
             std::span<const TrainedTensor> tensors, uint64_t generation);

  // Local. Until what is enqueued on `stream` may change the tensors given to start(); returns at once when
  // no copy is under way. Every change of them, such as an optimizer step, comes after it.
  void wait_for_copy(Stream& stream);

  // Collective while a save is pending. The report once it is committed, else nothing. Throws the same
  // IoError on all ranks when it failed; then nothing is pending any more, and the checkpoints that were
  // there are untouched. Never waits for the disk.
  [[nodiscard]] std::optional<SaveReport> poll(Communicator& world);

  // Collective; as poll(), but until the save is over. Nothing when none was pending. No single communicator
  // call waits for the disk for longer than about a tenth of a second, however slow the disk is.
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
