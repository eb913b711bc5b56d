#include "parallel/mpi_library.h"

#include <mpi.h>

#include <vector>

#include "ops/core/check.h"
#include "parallel/mpi_requests.h"

namespace pesc {

struct MpiLibrary::Group {
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0, size = 1;
};

MpiLibrary::MpiLibrary(int colour) : group_(std::make_unique<Group>()) {
  MPI_Comm_rank(MPI_COMM_WORLD, &group_->rank);
  check_mpi(MPI_Comm_split(MPI_COMM_WORLD, colour, group_->rank, &group_->comm), group_->rank,
            "split for a benchmark of MPI");
  MPI_Comm_rank(group_->comm, &group_->rank);
  MPI_Comm_size(group_->comm, &group_->size);
}

MpiLibrary::~MpiLibrary() {
  MPI_Comm_free(&group_->comm);
}

std::function<void()> MpiLibrary::call(const std::string& operation, int64_t bytes) const {
  const int n = static_cast<int>(bytes / static_cast<int64_t>(sizeof(float)));
  const auto small = static_cast<size_t>(n);
  const size_t large = small * static_cast<size_t>(group_->size);
  struct Buffers {
    std::vector<float> in, out;
  };
  const auto buffers = [](size_t in, size_t out) {
    return std::make_shared<Buffers>(Buffers{std::vector<float>(in), std::vector<float>(out)});
  };
  const MPI_Comm comm = group_->comm;
  const int rank = group_->rank;
  if (operation == "all_gather") {
    return [=, b = buffers(small, large)] {
      check_mpi(MPI_Allgather(b->in.data(), n, MPI_FLOAT, b->out.data(), n, MPI_FLOAT, comm), rank,
                "MPI_Allgather");
    };
  }
  if (operation == "reduce_scatter") {
    return [=, b = buffers(large, small)] {
      check_mpi(MPI_Reduce_scatter_block(b->in.data(), b->out.data(), n, MPI_FLOAT, MPI_SUM, comm), rank,
                "MPI_Reduce_scatter_block");
    };
  }
  if (operation == "all_reduce") {
    return [=, b = buffers(small, small)] {
      check_mpi(MPI_Allreduce(b->in.data(), b->out.data(), n, MPI_FLOAT, MPI_SUM, comm), rank,
                "MPI_Allreduce");
    };
  }
  PESC_CHECK(operation == "all_to_all", "no collective of MPI for ", operation);
  return [=, b = buffers(large, large)] {
    check_mpi(MPI_Alltoall(b->in.data(), n, MPI_FLOAT, b->out.data(), n, MPI_FLOAT, comm), rank,
              "MPI_Alltoall");
  };
}

}  // namespace pesc
