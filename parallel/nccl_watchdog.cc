#include "parallel/nccl_watchdog.h"

#include <thread>

#include "ops/core/stream_cuda.h"

namespace pesc {

NcclWatchdog::~NcclWatchdog() {
  for (const Operation& o : operations_) (void)cudaEventDestroy(o.done);
  for (cudaEvent_t event : spare_) (void)cudaEventDestroy(event);
}

void NcclWatchdog::remove(const NcclPeer* peer) {
  std::erase(peers_, peer);
  std::erase_if(operations_, [&](const Operation& o) {
    if (o.peer == peer) spare_.push_back(o.done);
    return o.peer == peer;
  });
}

void NcclWatchdog::forget_finished() {
  while (!operations_.empty() && cudaEventQuery(operations_.front().done) == cudaSuccess) {
    spare_.push_back(operations_.front().done);
    operations_.pop_front();
  }
  (void)cudaGetLastError();  // "not ready" is no error of a later call
}

void NcclWatchdog::enqueued(Stream& stream, const NcclPeer& peer, const char* operation, int64_t bytes) {
  forget_finished();
  cudaEvent_t event = nullptr;
  if (spare_.empty()) {
    PESC_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  } else {
    event = spare_.back();
    spare_.pop_back();
  }
  PESC_CUDA(cudaEventRecord(event, cuda::stream_of(stream)));
  operations_.push_back({event, &peer, operation, bytes});
}

std::string NcclWatchdog::where(const NcclPeer& peer, const std::string& operation) const {
  return str_cat(operation, " on communicator '", peer.name, "' (rank ", peer.rank, " of ", peer.size,
                 "; world rank ", rank_, ")");
}

void NcclWatchdog::check(double seconds_waited) {
  if (aborted_) return;
  forget_finished();
  for (const NcclPeer* peer : peers_) {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t code = ncclCommGetAsyncError(peer->connection->comm, &state);
    if (code == ncclSuccess && (state == ncclSuccess || state == ncclInProgress)) continue;
    const std::string why = ncclGetErrorString(code == ncclSuccess ? state : code);
    const char* last = ncclGetLastError(peer->connection->comm);
    fail(str_cat(where(*peer, "NCCL"), " failed: ", why,
                 last != nullptr ? str_cat(" (", last, ")") : std::string(),
                 "; another rank or the network between them is lost"));
  }
  if (operations_.empty() || seconds_waited <= wait_limit_()) return;
  const Operation& first = operations_.front();
  hang(where(*first.peer, str_cat(first.name, " of ", first.bytes, " bytes")), seconds_waited);
}

void NcclWatchdog::settle(const NcclPeer& peer, ncclResult_t code, const std::string& operation) {
  const auto start = std::chrono::steady_clock::now();
  while (code == ncclInProgress) {
    const auto waited = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (waited > wait_limit_()) hang(where(peer, operation), waited);
    if (waited > 0.02) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    } else if (waited > 20e-6) {
      std::this_thread::yield();
    }
    const ncclResult_t asked = ncclCommGetAsyncError(peer.connection->comm, &code);
    if (asked != ncclSuccess) code = asked;
  }
  if (code == ncclSuccess) return;
  const char* last = ncclGetLastError(nullptr);
  fail(str_cat(where(peer, operation), ": ", ncclGetErrorString(code),
               last != nullptr && *last != '\0' ? str_cat(" (", last, ")") : std::string()));
}

void NcclWatchdog::abort_all() noexcept {
  if (aborted_) return;
  aborted_ = true;
  for (const NcclPeer* peer : peers_) {
    if (peer->connection->comm != nullptr) (void)ncclCommAbort(peer->connection->comm);
    peer->connection->comm = nullptr;
  }
}

void NcclWatchdog::fail(const std::string& what) {
  abort_all();
  throw IoError(what);
}

void NcclWatchdog::hang(const std::string& what, double seconds) {
  abort_all();
  throw HangError(str_cat(what, ": not done after ", static_cast<int64_t>(seconds),
                          " s; a rank of it is lost, slow, or in another operation"));
}

}  // namespace pesc
