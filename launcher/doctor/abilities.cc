#include "launcher/doctor/abilities.h"

#include <algorithm>
#include <utility>

#include "ops/core/check.h"

namespace pesc {
namespace {

constexpr const char* kInstall = "cluster/install-deps.sh";
constexpr const char* kInstallGpu = "cluster/install-deps.sh --gpu says what to install";
constexpr const char* kBuild = "cmake --preset release && cmake --build --preset release --target pesc";
constexpr int64_t kLeastFiles = 256;  // Open MPI and a rank have some 60 open, a checkpoint as many again
// The quick start's four ranks have some 150 MB each.
constexpr int64_t kLeastMemory = int64_t{512} << 20;

std::string rebuild(const std::string& what) {
  return str_cat(what, ", then ", kBuild);
}

void need(Ability& ability, bool there, std::string what, std::string way_out) {
  if (!there) ability.lacks.push_back({std::move(what), std::move(way_out)});
}

// Of a message that ends with the way out, "; make room there, ...".
void need_none(Ability& ability, const std::string& message, const char* otherwise) {
  if (message.empty()) return;
  const size_t at = message.find("; ");
  if (at == std::string::npos) return need(ability, false, message, otherwise);
  need(ability, false, message.substr(0, at), message.substr(at + 2));
}

Ability one_rank(const MachineFacts& m) {
  Ability a{"cpu_training", "training on the CPU, one rank", {}};
  need(a, m.mpi_trouble.empty(), m.mpi_trouble, kInstall);
  need_none(a, m.temporary_trouble, "name another folder in TMPDIR");
  need(a, m.memory == 0 || m.memory >= kLeastMemory,
       str_cat("the processes here may have ", m.memory >> 20, " MiB of memory in sum"),
       "give the container or the job more memory");
  return a;
}

Ability ranks_of_a_host(const MachineFacts& m, const Ability& one) {
  Ability a{"cpu_ranks", "training on the CPU, several ranks of this host", one.lacks};
  need(a, m.mpirun_trouble.empty(), m.mpirun_trouble, kInstall);
  need_none(a, m.shared_memory_trouble, "mount -o remount,size=2G /dev/shm; docker run --shm-size=2g");
  need(a, m.open_files < 0 || m.open_files >= kLeastFiles,
       str_cat("a process may have ", m.open_files, " open files"), "ulimit -n 4096");
  return a;
}

Ability one_gpu(const BuildFacts& b, const MachineFacts& m, const Ability& one) {
  Ability a{"gpu_training", "training on one GPU", one.lacks};
  need(a, m.driver_trouble.empty(), "no driver of NVIDIA answers: " + m.driver_trouble,
       "nvidia-smi has to work first: apt-get install nvidia-driver (Debian, non-free), ubuntu-drivers "
       "install (Ubuntu); in a container, start it with --gpus all or --nv");
  if (m.driver_trouble.empty()) {
    need(a, !m.gpus.empty(), "the driver shows no GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES");
    need(a, m.gpus_trouble.empty(), "CUDA does not start: " + m.gpus_trouble, "check nvidia-smi");
    const bool all_bad = !m.gpus.empty() && std::ranges::none_of(m.gpus, [](const GpuFacts& gpu) {
      return gpu.trouble.empty();
    });
    if (all_bad) need(a, false, m.gpus.front().trouble, "see the message");
  }
  need(a, b.cuda, "this pesc was built without CUDA", rebuild(kInstallGpu));
  return a;
}

}  // namespace

std::vector<Ability> abilities(const BuildFacts& b, const MachineFacts& m) {
  std::vector<Ability> all;
  const Ability one = one_rank(m);
  all.push_back(one);
  all.push_back(ranks_of_a_host(m, one));
  const Ability gpu = one_gpu(b, m, one);
  all.push_back(gpu);

  Ability attention{"gpu_attention", "attention by cuDNN in bf16 (without it, slower kernels of our own)",
                    gpu.lacks};
  if (b.cuda) need(attention, b.cudnn, "this pesc was built without cuDNN", rebuild(kInstallGpu));
  all.push_back(attention);

  Ability gpus{"gpu_ranks", "training on several GPUs of this host", all[1].lacks};
  for (const Lack& lack : gpu.lacks) {
    if (std::ranges::find(one.lacks, lack.what, &Lack::what) == one.lacks.end()) gpus.lacks.push_back(lack);
  }
  if (b.cuda) need(gpus, b.nccl, "this pesc was built without NCCL", rebuild(kInstallGpu));
  if (!m.gpus.empty())
    need(gpus, m.gpus.size() > 1, "this machine has one GPU", "take a machine or a job with more GPUs");
  all.push_back(gpus);

  Ability hosts{"hosts", "training on several hosts", all[1].lacks};
  need(hosts, !m.interfaces.empty(), "no network interface is up but the loopback", "ip link; ip address");
  need(hosts, m.ssh || !m.slurm.empty(), "neither ssh nor Slurm starts processes on other hosts",
       "apt-get install openssh-client, and a key that needs no password");
  all.push_back(hosts);

  Ability slurm{"slurm", "jobs of Slurm", all[1].lacks};
  need(slurm, m.slurm_trouble.empty(), m.slurm_trouble,
       "log in to a node of the cluster; cluster/slurm has the job scripts");
  all.push_back(slurm);
  return all;
}

}  // namespace pesc
