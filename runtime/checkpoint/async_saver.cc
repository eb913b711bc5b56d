#include "runtime/checkpoint/async_saver.h"

#include <algorithm>
#include <vector>

namespace pesc {

void AsyncSaver::start(Communicator& world, Stream& stream, const CheckpointState& state,
                       std::span<const TrainableTensor> tensors, uint64_t launch_id) {
  PESC_CHECK(!pending(), "step ", state.step, ": the save of step ", save_->step(), " is still in progress");
  save_.emplace(store_.begin(world, stream, state, tensors, launch_id));
  phase_ = Phase::kWriting;
  std::promise<void> copied;
  copied_ = copied.get_future();
  work_ = std::async(std::launch::async, [save = &*save_, copied = std::move(copied)]() mutable {
    save->copy();
    copied.set_value();
    save->write();
  });
}

void AsyncSaver::wait_for_copy(Stream& stream) {
  if (!copied_.valid()) return;
  copied_.get();
  if (save_) save_->wait(stream);
}

std::optional<SaveReport> AsyncSaver::advance(Communicator& world, std::chrono::milliseconds patience) {
  const int64_t done = work_.wait_for(patience) == std::future_status::ready ? 1 : 0;
  const std::vector<int64_t> all = world.host_all_gather(std::span(&done, 1));
  if (std::find(all.begin(), all.end(), 0) != all.end()) return {};
  work_.get();
  try {
    if (phase_ == Phase::kWriting) {
      save_->exchange(world);
      phase_ = Phase::kCommitting;
      work_ = std::async(std::launch::async, [save = &*save_] { save->commit(); });
      return {};
    }
    const SaveReport report = save_->finish(world);
    save_.reset();
    return report;
  } catch (...) {
    save_.reset();
    throw;
  }
}

std::optional<SaveReport> AsyncSaver::poll(Communicator& world) {
  if (!pending()) return {};
  return advance(world, std::chrono::milliseconds(0));
}

std::optional<SaveReport> AsyncSaver::wait(Communicator& world) {
  std::optional<SaveReport> report;
  while (pending() && !report) report = advance(world, std::chrono::milliseconds(100));
  return report;
}

}  // namespace pesc
