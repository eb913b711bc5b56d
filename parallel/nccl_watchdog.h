// The NCCL watchdog of a rank. It knows the live communicators and the operations that are enqueued but not
// finished, so that a wait that takes too long, or a lost peer, ends with an error that names the operation.
// NCCL's own waits have no limit.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/core/device.h"

namespace pesc {

// The ncclComm_t that all our communicators with the same ranks share. Null until the first operation.
struct NcclConnection {
  ncclComm_t comm = nullptr;
};

// A communicator, with what error messages need to name it.
struct NcclPeer {
  std::shared_ptr<NcclConnection> connection;
  std::string name;
  int rank = 0;
  int size = 0;
};

class NcclWatchdog final : public cuda::Watcher {
 public:
  explicit NcclWatchdog(int world_rank, std::function<double()> wait_limit)
      : rank_(world_rank), wait_limit_(std::move(wait_limit)) {}
  ~NcclWatchdog() override;
  NcclWatchdog(const NcclWatchdog&) = delete;
  NcclWatchdog& operator=(const NcclWatchdog&) = delete;

  void add(const NcclPeer* peer) { peers_.push_back(peer); }
  void remove(const NcclPeer* peer);

  // Call after an operation of `peer` was enqueued on the stream.
  void enqueued(Stream& stream, const NcclPeer& peer, const char* operation, int64_t bytes);
  // Called while the host waits for a stream. Throws IoError when a communicator has failed, HangError when
  // the wait has reached its limit.
  void check(double seconds_waited) override;

  // Waits until a call on a nonblocking communicator is complete. `code` is the call's result. Throws as
  // check().
  void settle(const NcclPeer& peer, ncclResult_t code, const std::string& operation);

  // Aborts all communicators, so that their kernels leave the GPU. No collective may follow.
  void abort_all() noexcept;
  [[nodiscard]] bool aborted() const { return aborted_; }

 private:
  struct Operation {
    cudaEvent_t done;
    const NcclPeer* peer;
    const char* name;
    int64_t bytes;
  };
  void forget_finished();
  [[nodiscard]] std::string where(const NcclPeer& peer, const std::string& operation) const;
  [[noreturn]] void fail(const std::string& what);
  [[noreturn]] void hang(const std::string& what, double seconds);

  int rank_;
  std::function<double()> wait_limit_;
  std::vector<const NcclPeer*> peers_;
  std::deque<Operation> operations_;  // in the order of the comm stream
  std::vector<cudaEvent_t> spare_;
  bool aborted_ = false;
};

}  // namespace pesc
