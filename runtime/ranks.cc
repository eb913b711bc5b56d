#include "runtime/ranks.h"

#include <sched.h>

#include <algorithm>
#include <vector>

#include "parallel/gpu_world.h"

namespace pesc {
namespace {

std::vector<int> allowed_cores() {
  cpu_set_t all;
  CPU_ZERO(&all);
  for (int i = 0; i < CPU_SETSIZE; ++i) CPU_SET(i, &all);
  // The kernel cuts this down to the cpuset that the job was given.
  sched_setaffinity(0, sizeof(all), &all);
  cpu_set_t mine;
  CPU_ZERO(&mine);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof(mine), &mine) == 0) {
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &mine)) cores.push_back(i);
    }
  }
  if (cores.empty()) cores.push_back(0);
  return cores;
}

}  // namespace

HostPlacement place_rank_on_host(int local_rank, int local_size, int threads) {
  const std::vector<int> cores = allowed_cores();
  const auto n = static_cast<int>(cores.size());
  HostPlacement placement{n, threads > 0 ? threads : std::max(1, n / local_size), local_rank};
  if (local_size <= 1) return placement;
  int begin = n * local_rank / local_size;
  int end = n * (local_rank + 1) / local_size;
  if (local_size > n) {
    begin = local_rank % n;  // neighbours, which wait for each other most, on different cores
    end = begin + 1;
  }
  cpu_set_t mine;
  CPU_ZERO(&mine);
  for (int i = begin; i < end; ++i) CPU_SET(cores[static_cast<size_t>(i)], &mine);
  sched_setaffinity(0, sizeof(mine), &mine);
  return placement;
}

std::unique_ptr<Communicator> connect_gpus(Communicator& world, const HostPlacement& placement,
                                           bool share_gpu, Device& device) {
  together(world, [&] { device.index = gpu_of_rank(placement.local_rank); });
  std::unique_ptr<Communicator> gpus;
  all_alike(world, [&] {
    gpus = open_gpu_world(world, device.index, share_gpu ? GpuUse::kShared : GpuUse::kExclusive);
  });
  return gpus;
}

Ranks::Ranks(Communicator& world, int tp, int ep, int64_t kv_heads)
    : world_(world),
      mesh_(world.size(), world.rank(), tp, ep),
      tp_(world.split(mesh_.dp_rank(), "tp")),
      ep_(world.split(mesh_.ep_group(), "ep")),
      reduction_(world, mesh_, kv_heads) {}

int64_t Ranks::bytes_sent() const {
  int64_t bytes = world_.bytes_sent() + tp_->bytes_sent() + ep_->bytes_sent();
  for (int g = 0; g < kReplicaGroups; ++g) {
    bytes += reduction_.communicator(static_cast<ReplicaGroup>(g)).bytes_sent();
  }
  return bytes;
}

void together(Communicator& world, const std::function<void()>& work) {
  int code = 0;
  std::string text;
  try {
    work();
  } catch (const Error& e) {
    code = static_cast<int>(e.code());
    text = e.what();
  } catch (const std::exception& e) {
    code = static_cast<int>(ExitCode::kInternal);
    text = e.what();
  }
  const int64_t mine = code;
  const std::vector<int64_t> codes = world.host_all_gather(std::span(&mine, 1));
  const auto first = std::find_if(codes.begin(), codes.end(), [](int64_t c) { return c != 0; });
  if (first == codes.end()) return;
  const std::vector<std::string> texts = world.host_all_gather(text);
  const auto rank = static_cast<int>(first - codes.begin());
  throw AgreedError(static_cast<ExitCode>(*first), texts[static_cast<size_t>(rank)], rank == world.rank());
}

void all_alike(const Communicator& world, const std::function<void()>& work) {
  try {
    work();
  } catch (const AgreedError&) {
    throw;
  } catch (const HangError&) {
    throw;
  } catch (const Error& e) {
    throw AgreedError(e.code(), e.what(), world.rank() == 0);
  }
}

}  // namespace pesc
