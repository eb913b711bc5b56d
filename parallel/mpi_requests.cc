// Waiting for MPI messages with a limit; see mpi_requests.h.
#include "parallel/mpi_requests.h"

#include <sched.h>

#include <algorithm>
#include <thread>

#include "ops/core/check.h"

namespace pesc {
namespace {

// MPI counts are int: larger messages go in parts.
constexpr int64_t kMaxMessage = int64_t{1} << 30;
constexpr auto kSleepAfter = std::chrono::milliseconds(20);
constexpr auto kSleep = std::chrono::microseconds(50);
constexpr auto kStoodStill = std::chrono::seconds(5);  // between two polls: the process was suspended

template <class Fn>  // Fn(offset, bytes)
void in_parts(int64_t bytes, Fn&& fn) {
  for (int64_t at = 0; at < bytes; at += kMaxMessage)
    fn(at, static_cast<int>(std::min(kMaxMessage, bytes - at)));
}

}  // namespace

void check_mpi(int code, int rank, const std::string& what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw IoError(str_cat("rank ", rank, ": MPI failed in ", what, ": ", text));
}

void MpiRequests::send(const void* data, int64_t bytes, int to, int tag) {
  in_parts(bytes, [&](int64_t at, int part) {
    MPI_Request request = MPI_REQUEST_NULL;
    const int code =
        MPI_Isend(static_cast<const std::byte*>(data) + at, part, MPI_BYTE, to, tag, comm_, &request);
    if (code != MPI_SUCCESS) [[unlikely]]
      check_mpi(code, rank_, str_cat(where("send"), " of ", part, " bytes to rank ", to));
    post(request, {to, part, false});
  });
}

void MpiRequests::receive(void* data, int64_t bytes, int from, int tag) {
  in_parts(bytes, [&](int64_t at, int part) {
    MPI_Request request = MPI_REQUEST_NULL;
    const int code =
        MPI_Irecv(static_cast<std::byte*>(data) + at, part, MPI_BYTE, from, tag, comm_, &request);
    if (code != MPI_SUCCESS) [[unlikely]]
      check_mpi(code, rank_, str_cat(where("receive"), " of ", part, " bytes from rank ", from));
    post(request, {from, part, true});
  });
}

void MpiRequests::wait(const MpiWaitPolicy& policy, const char* operation) {
  if (requests_.empty()) return;
  statuses_.resize(requests_.size());
  const int count = static_cast<int>(requests_.size());
  int polls = 0;
  std::chrono::steady_clock::time_point begin, last;
  for (;;) {
    int done = 0;
    const int code = MPI_Testall(count, requests_.data(), &done, statuses_.data());
    if (code != MPI_SUCCESS) [[unlikely]] {
      int first = code;
      int64_t bytes = 0;
      for (size_t i = 0; i < requests_.size(); ++i) {
        const int each = statuses_[i].MPI_ERROR;
        if (code == MPI_ERR_IN_STATUS && each != MPI_SUCCESS && each != MPI_ERR_PENDING) first = each;
        bytes += entries_[i].bytes;
      }
      requests_.clear();
      entries_.clear();
      check_mpi(first, rank_, str_cat(where(operation), ", ", bytes, " bytes"));
    }
    if (done != 0) break;
    if (++polls <= policy.spins) continue;
    const auto now = std::chrono::steady_clock::now();
    if (polls == policy.spins + 1) begin = last = now;
    // This process was suspended, most likely together with all ranks (SIGSTOP, a suspended job or machine).
    if (now - last > kStoodStill) begin += now - last;
    last = now;
    if (now - begin > policy.limit) hang(policy, operation);
    if (now - begin > kSleepAfter) {
      std::this_thread::sleep_for(kSleep);
    } else {
      sched_yield();
    }
  }
  check_arrived(operation);
  requests_.clear();
  entries_.clear();
}

void MpiRequests::check_arrived(const char* operation) const {
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (!entries_[i].receives) continue;
    int bytes = 0;
    MPI_Get_count(&statuses_[i], MPI_BYTE, &bytes);
    if (bytes != entries_[i].bytes) {
      throw IoError(str_cat(where(operation), ": rank ", entries_[i].peer, " sent ", bytes,
                            " bytes in place of ", entries_[i].bytes, "; start the same pesc on every host"));
    }
  }
}

void MpiRequests::hang(const MpiWaitPolicy& policy, const char* operation) {
  std::string missing;
  for (size_t i = 0; i < requests_.size(); ++i) {
    int done = 0;
    MPI_Status status;
    if (MPI_Request_get_status(requests_[i], &done, &status) == MPI_SUCCESS && done != 0) continue;
    const Entry& e = entries_[i];
    missing += e.peer < 0 ? str_cat("; not everybody came")
                          : str_cat("; ", e.bytes, e.receives ? " bytes from rank " : " bytes to rank ",
                                    e.peer, e.receives ? " did not come" : " were not taken");
  }
  // Pending requests cannot be cancelled safely: they are left to MPI.
  requests_.clear();
  entries_.clear();
  throw HangError(str_cat(where(operation), " did not finish within ", policy.limit.count(), " s", missing));
}

std::string MpiRequests::where(const char* operation) const {
  return str_cat("rank ", rank_, " of ", size_, ": ", operation, " on communicator '", name_, "'");
}

}  // namespace pesc
