// What a machine has of what pesc needs: looked at by `pesc doctor`, without MPI and CUDA in this process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace pesc {

// What this program was built with.
struct BuildFacts {
  std::string version, compiler, march, gemm;
  bool cuda = false, nccl = false, cudnn = false;
};

struct GpuFacts {
  std::string name;
  int64_t bytes = 0;
  int major = 0, minor = 0;  // compute capability
  std::string trouble;       // why this pesc cannot use it
};

struct NetworkInterface {
  std::string name;
  std::vector<std::string> addresses;
};

// A folder on a file system that the ranks share, or may.
struct FolderFacts {
  std::string path, filesystem;
  int64_t bytes = 0, free_bytes = 0;
  bool flock = false, fcntl = false;  // which of the two locks keeps a second owner out
  double sync_seconds = 0;            // of writing and syncing 1 MiB
  double clock_ahead = 0;             // of the clock of its files, seconds
  std::string trouble;                // why it cannot be used
};

// Memory in bytes; -1 where there is no limit.
struct MachineFacts {
  std::string host, system, cpu;
  int cores_online = 0, cores_usable = 0;
  double quota = 0;  // CPUs of the control group; 0: no bound
  int64_t memory = 0, memory_available = 0, address_space = -1;
  int64_t shared_memory = 0, shared_memory_free = 0;
  std::string shared_memory_trouble;  // of as many ranks as there are cores
  std::string temporary_trouble;      // of the folder for session files
  int64_t open_files = -1, locked_memory = -1, processes = -1;
  std::string clock;  // "2026-11-30 21:52:03 UTC"
  bool clock_synchronised = false;
  std::vector<NetworkInterface> interfaces;  // that are up, without the loopback
  std::vector<std::string> infiniband;
  bool ssh = false;

  std::string mpi,
      mpi_trouble;  // the library, started in a child unless temporary_trouble says why it cannot
  double mpi_seconds = 0;
  std::string mpirun, mpirun_trouble;

  std::string driver, driver_trouble;  // of NVIDIA
  std::vector<GpuFacts> gpus;
  std::string gpus_trouble;
  std::string cuda_runtime, nccl, cudnn;  // versions of the libraries that are found; empty: none

  std::string slurm_job;  // that this process is in
  std::string slurm;      // what sinfo says of the partitions
  std::string slurm_trouble;

  FolderFacts folder;
};

[[nodiscard]] BuildFacts look_at_build();
// Takes some seconds; each question that may hang has a limit of its own. `folder` is looked at too.
[[nodiscard]] MachineFacts look_at_machine(const std::string& folder);

// The parts of look_at_machine that ask child processes.
void look_at_mpi(MachineFacts& machine);
void look_at_gpus(MachineFacts& machine);
[[nodiscard]] FolderFacts look_at_folder(const std::string& path);

}  // namespace pesc
