// The cores on which a rank was started: by taskset, a cpuset, Slurm, or an mpirun with a binding option.
#pragma once

#include <cstdint>
#include <vector>

namespace pesc {

struct HostCores {
  std::vector<int> cores = {0};  // the kernel's numbers, ascending
  int sharers = 1;               // ranks of this host with exactly these cores
  int index = 0;                 // of this rank among them, in the order of ranks
};

// The affinity mask of this process at its start. Where mpirun bound the rank by its default policy (Open MPI
// binds each of two ranks to one core), the mask of mpirun itself, which all ranks of this host share.
[[nodiscard]] std::vector<int> cores_of_start();

// One bit per core, in 64-bit words, as the ranks of a host exchange them.
constexpr int kCoreWords = 16;
[[nodiscard]] std::vector<uint64_t> core_bits(const std::vector<int>& cores);
// The cores of rank `local_rank`, and how many ranks share them. `bits` holds the words of every rank of this
// host, kCoreWords each.
[[nodiscard]] HostCores share_cores(const std::vector<uint64_t>& bits, int local_rank);

}  // namespace pesc
