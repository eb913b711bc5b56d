#include "runtime/ranks.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <vector>

#include "parallel/gpu_world.h"
#include "runtime/cpu_quota.h"

namespace pesc {
namespace {

// 1.5, 2
std::string short_number(double value) {
  std::ostringstream out;
  out << std::round(value * 100) / 100;
  return out.str();
}

}  // namespace

HostPlacement divide_host(const HostCores& given, double quota, int online, int local_rank, int local_size,
                          int threads) {
  const auto n = static_cast<int>(given.cores.size());
  HostPlacement p{n, 1, local_rank, {}, ""};
  int mine = n;
  if (given.sharers > 1) {
    int begin = n * given.index / given.sharers;
    int end = n * (given.index + 1) / given.sharers;
    if (given.sharers > n) {
      begin = given.index % n;  // neighbours, which wait for each other most, on different cores
      end = begin + 1;
    }
    p.on.assign(given.cores.begin() + begin, given.cores.begin() + end);
    mine = std::max(1, n / given.sharers);
  }
  if (n < online) p.why = str_cat("it was given ", n, " of the ", online, " cores of its host");
  const double part = quota / local_size;
  if (quota > 0 && part < mine) {
    mine = std::max(1, static_cast<int>(part));
    p.why += str_cat(p.why.empty() ? "" : ", and ", "the cgroup's quota is ", short_number(quota),
                     " CPUs for the ", local_size, " ranks of this host");
  }
  p.threads = threads > 0 ? threads : mine;
  if (threads > mine && p.why.empty())
    p.why = str_cat("its host has ", n, n == 1 ? " core" : " cores", " for ", local_size,
                    local_size == 1 ? " rank" : " ranks");
  if (threads > mine)
    p.why += str_cat("; parallel.num_threads ", threads, " is obeyed, but ", mine, " would fit");
  return p;
}

HostPlacement place_rank_on_host(const HostCores& given, int local_rank, int local_size, int threads) {
  const auto online = static_cast<int>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
  HostPlacement p = divide_host(given, cpu_quota(), online, local_rank, local_size, threads);
  cpu_set_t mine;
  CPU_ZERO(&mine);
  for (const int core : p.on.empty() ? given.cores : p.on) CPU_SET(core, &mine);
  sched_setaffinity(0, sizeof(mine), &mine);
  return p;
}

std::unique_ptr<Communicator> connect_gpus(Communicator& world, const HostPlacement& placement,
                                           bool share_gpu, Device& device) {
  run_collectively(world, [&] { device.index = gpu_of_rank(placement.local_rank); });
  std::unique_ptr<Communicator> gpus;
  rethrow_agreed(world, [&] {
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

void run_collectively(Communicator& world, const std::function<void()>& work) {
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

void rethrow_agreed(const Communicator& world, const std::function<void()>& work) {
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
