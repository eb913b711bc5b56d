// Pending point-to-point messages, and the only place where the mpi communicator waits.
//
// A wait polls: it spins first, then yields the core between polls (ranks may outnumber cores, and the peer
// may need this core), and after kSleepAfter sleeps between polls. After `limit` it throws HangError. MPI
// then still owns the buffers of the messages that did not arrive, so the process must end soon
// (MpiSession::abort).
#pragma once

#include <mpi.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace pesc {

class Communicator;

struct MpiWaitPolicy {
  std::chrono::duration<double> limit = std::chrono::seconds(600);
  int spins = 1000;  // polls before the first yield
};

// Throws IoError, naming the rank and the operation, unless `code` is MPI_SUCCESS.
void check_mpi(int code, int rank, const std::string& what);

class MpiRequests {
 public:
  // `rank`, `size` and `name` identify the communicator in error messages.
  MpiRequests(MPI_Comm comm, int rank, int size, std::string name)
      : comm_(comm), rank_(rank), size_(size), name_(std::move(name)) {}

  // Start a message of any size; 0 bytes sends nothing. MPI owns the memory until `wait` returns. REQUIRES:
  // sender and receiver give the same number of bytes; if another number arrives, `wait` throws IoError.
  void send(const void* data, int64_t bytes, int to, int tag);
  void receive(void* data, int64_t bytes, int from, int tag);
  // A nonblocking collective that moves no payload.
  void add(MPI_Request request) { post(request, {-1, 0, false}); }

  // Waits for all requests posted since the last wait. `operation` is named in errors.
  void wait(const MpiWaitPolicy& policy, const char* operation);

 private:
  struct Entry {
    int peer;  // -1: all
    int64_t bytes;
    bool receives;
  };
  void post(MPI_Request request, Entry entry) {
    requests_.push_back(request);
    entries_.push_back(entry);
  }
  void check_arrived(const char* operation) const;
  [[noreturn]] void hang(const MpiWaitPolicy& policy, const char* operation);
  [[nodiscard]] std::string where(const char* operation) const;

  MPI_Comm comm_;
  int rank_, size_;
  std::string name_;
  std::vector<MPI_Request> requests_;
  std::vector<MPI_Status> statuses_;
  std::vector<Entry> entries_;
};

// The communicator of mpi_communicator.cc. It owns `comm`.
[[nodiscard]] std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm comm, const std::string& name,
                                                                  std::shared_ptr<MpiWaitPolicy> policy);

}  // namespace pesc
