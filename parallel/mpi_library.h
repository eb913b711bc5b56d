// MPI's own collectives, as a yardstick for those of parallel/mpi_communicator.cc. Training does not use them:
// their sums have no fixed order, and their waits no limit.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace pesc {

// The ranks of one colour, on a communicator of MPI's own.
class MpiLibrary {
 public:
  // Collective over all ranks of MPI_COMM_WORLD; `colour` as in MPI_Comm_split.
  explicit MpiLibrary(int colour);
  ~MpiLibrary();
  MpiLibrary(const MpiLibrary&) = delete;
  MpiLibrary& operator=(const MpiLibrary&) = delete;

  // One collective of float32 in host memory, as a call that may be repeated: "all_gather" of `bytes` from each
  // rank, "reduce_scatter" with a result of `bytes`, "all_reduce" of `bytes`, "all_to_all" of `bytes` to each
  // rank. The call keeps its buffers, and must not outlive this object.
  [[nodiscard]] std::function<void()> call(const std::string& operation, int64_t bytes) const;

 private:
  struct Group;
  std::unique_ptr<Group> group_;
};

}  // namespace pesc
