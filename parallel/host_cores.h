// The cores that a rank was given when it was started: by taskset, a cpuset, Slurm, or an mpirun that was
// told how to bind.
#pragma once

#include <cstdint>
#include <vector>

namespace pesc {

struct HostCores {
  std::vector<int> cores = {0};  // the kernel's numbers, ascending
  int sharers = 1;               // ranks of this host that were given exactly these
  int index = 0;                 // of this rank among them, in the order of ranks
};

// The affinity mask of this process's start. Where mpirun has bound the rank without being asked to
// (Open MPI's default: a core for each of two ranks), it is the mask of mpirun's own, which all ranks of this
// host share.
[[nodiscard]] std::vector<int> cores_of_start();

// One bit for each core, in words of 64, as ranks exchange them.
constexpr int kCoreWords = 16;
[[nodiscard]] std::vector<uint64_t> core_bits(const std::vector<int>& cores);
// `bits` holds those of every rank of this host, kCoreWords each; this rank is number `local_rank`.
[[nodiscard]] HostCores share_cores(const std::vector<uint64_t>& bits, int local_rank);

}  // namespace pesc
