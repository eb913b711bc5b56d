#include "parallel/host_cores.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

namespace pesc {
namespace {

std::vector<int> cores_of(pid_t process) {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(process, sizeof(set), &set) != 0) return cores;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) cores.push_back(i);
  }
  return cores;
}

// Whether mpirun has bound this process although neither its command line nor its settings ask for binding.
bool bound_by_default() {
  if (std::getenv("OMPI_MCA_orte_bound_at_launch") == nullptr) return false;
  const bool asked = std::getenv("OMPI_MCA_hwloc_base_binding_policy") != nullptr ||
                     std::getenv("OMPI_MCA_hwloc_base_cpu_list") != nullptr ||
                     std::getenv("OMPI_MCA_orte_rankfile") != nullptr;
  const char* mapping = std::getenv("OMPI_MCA_rmaps_base_mapping_policy");
  std::string text = mapping == nullptr ? "" : mapping;
  std::transform(text.begin(), text.end(), text.begin(),
                 [](char c) { return c == 'P' || c == 'E' ? c | 0x20 : c; });
  return !asked && text.find("pe=") == std::string::npos;
}

}  // namespace

std::vector<int> cores_of_start() {
  std::vector<int> cores;
  if (bound_by_default()) cores = cores_of(getppid());
  if (cores.empty()) cores = cores_of(0);
  if (cores.empty()) cores.push_back(0);
  return cores;
}

std::vector<uint64_t> core_bits(const std::vector<int>& cores) {
  std::vector<uint64_t> bits(kCoreWords);
  for (const int core : cores) {
    if (core >= 0 && core < 64 * kCoreWords) bits[static_cast<size_t>(core / 64)] |= uint64_t{1} << core % 64;
  }
  return bits;
}

HostCores share_cores(const std::vector<uint64_t>& bits, int local_rank) {
  const auto of = [&](int rank) { return bits.begin() + static_cast<std::ptrdiff_t>(rank) * kCoreWords; };
  HostCores mine{{}, 0, 0};
  const int ranks = static_cast<int>(bits.size()) / kCoreWords;
  for (int rank = 0; rank < ranks; ++rank) {
    if (!std::equal(of(rank), of(rank) + kCoreWords, of(local_rank))) continue;
    if (rank == local_rank) mine.index = mine.sharers;
    ++mine.sharers;
  }
  for (int core = 0; core < 64 * kCoreWords; ++core) {
    if (*(of(local_rank) + core / 64) >> core % 64 & 1) mine.cores.push_back(core);
  }
  return mine;
}

}  // namespace pesc
