#include "launcher/bench_collectives.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <span>
#include <string_view>

#include "ops/core/arena.h"
#include "ops/core/check.h"
#include "parallel/mpi_library.h"
#include "runtime/least_traffic.h"

namespace pesc {
namespace {

constexpr double kLibrarySeconds = 0.1;  // of calls of each kind
constexpr int kMostLibraryCalls = 50;
constexpr const char* kOtherCollectives = "other";

Communicator& group_named(const Job& job, const std::string& name) {
  const Ranks& ranks = *job.ranks;
  if (name == ranks.world().name()) return ranks.world();
  const Groups groups = ranks.groups();
  for (Communicator* group : {&groups.tp, &groups.ep})
    if (group->name() == name) return *group;
  for (int g = 0; g < kReplicaGroups; ++g) {
    Communicator& group = ranks.reduction().communicator(static_cast<ReplicaGroup>(g));
    if (group.name() == name) return group;
  }
  PESC_CHECK(false, "no group is named '", name, "'");
  return ranks.world();
}

// Whether the collectives of the group are those of the phase; of no phase: "other".
bool of_phase(std::string_view group, std::string_view phase) {
  if (group == "tp") return phase == kTensorParallelPhase;
  if (group == "ep") return is_exchange(phase);
  return phase == (group.starts_with("gradients.") ? kGradientPhase : kOtherCollectives);
}

int64_t largest(Communicator& ranks, int64_t mine) {
  return std::ranges::max(ranks.host_all_gather(std::span(&mine, 1)));
}

// Seconds of a call, of the slowest rank of the group. Collective over it.
double seconds_of_call(Communicator& group, Stream& stream, const std::function<void()>& call) {
  using Clock = std::chrono::steady_clock;
  const auto timed = [&](int64_t calls) {
    group.barrier();
    const auto start = Clock::now();
    for (int64_t i = 0; i < calls; ++i) call();
    stream.synchronize();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    return static_cast<double>(largest(group, static_cast<int64_t>(1e9 * seconds))) / 1e9;
  };
  (void)timed(1);  // connects
  const double first = timed(1);
  const auto calls = std::clamp<int64_t>(static_cast<int64_t>(kLibrarySeconds / std::max(first, 1e-6)), 1,
                                         kMostLibraryCalls);
  return timed(calls) / static_cast<double>(calls);
}

// One call of NCCL: our communicator adds nothing to it.
double device_seconds(Communicator& group, Stream& stream, const CollectiveKind& kind, int64_t bytes) {
  const int64_t n = std::max<int64_t>(1, bytes / dtype_bytes(kind.dtype));
  const int64_t ranks = group.size();
  Arena arena("a collective of the bench", stream.device(),
              (2 * ranks + 1) * n * dtype_bytes(kind.dtype) + 3 * Arena::kAlignment);
  const Tensor small = arena.allocate(1, n, kind.dtype);
  if (kind.operation == "all_reduce")
    return seconds_of_call(group, stream, [&] { group.all_reduce_sum(stream, small); });
  if (kind.operation == "all_to_all") {
    const std::vector<int64_t> rows(static_cast<size_t>(ranks), 1);
    const Tensor in = arena.allocate(ranks, n, kind.dtype);
    const Tensor out = arena.allocate(ranks, n, kind.dtype);
    return seconds_of_call(group, stream, [&] { group.all_to_all_v(stream, in, rows, out, rows); });
  }
  const Tensor large = arena.allocate(1, ranks * n, kind.dtype);
  if (kind.operation == "all_gather")
    return seconds_of_call(group, stream, [&] { group.all_gather(stream, small, large); });
  return seconds_of_call(group, stream, [&] { group.reduce_scatter(stream, large, small); });
}

// Bytes of a call of the library: of an all-to-all, those for one rank where all get as many.
int64_t library_bytes(const CollectiveKind& kind, const CollectiveCount& count) {
  if (kind.operation != "all_to_all") return kind.bytes;
  return count.bytes_sent / std::max<int64_t>(1, count.calls * (kind.ranks - 1));
}

double library_seconds(const Job& job, Stream& stream, const CollectiveKind& kind, int64_t bytes) {
  Communicator& group = group_named(job, kind.group);
  // The ranks of a group agree on the size, of which those of an all-to-all have different ones.
  const int64_t agreed = (largest(group, bytes) + 3) / 4 * 4;
  if (job.device.kind == DeviceKind::kCuda) return device_seconds(group, stream, kind, agreed);
  const int64_t rank = job.mesh().rank();
  const MpiLibrary library(static_cast<int>(group.host_all_gather(std::span(&rank, 1)).front()));
  return seconds_of_call(group, stream, library.call(kind.operation, agreed));
}

// All ranks have made the same kinds of collectives, so that all can repeat them in one order.
void check_same_kinds(const Job& job, const CollectiveCounts& counts) {
  std::string mine;
  for (const auto& [kind, count] : counts) mine += str_cat(kind.group, " ", kind.operation, "; ");
  const std::vector<std::string> all = job.ranks->world().host_all_gather(mine);
  PESC_CHECK(std::ranges::count(all, mine) == std::ssize(all), "ranks made different collectives: ", mine);
}

}  // namespace

std::unique_ptr<Communicator> meter_ranks(Job& job, Communicator& world, CollectiveMeter& meter) {
  if (world.size() == 1) return nullptr;
  std::unique_ptr<Communicator> metered = metered_communicator(job.gpu_world ? *job.gpu_world : world, meter);
  job.ranks.reset();
  job.ranks = std::make_unique<Ranks>(*metered, job.config.parallel.tp, job.config.parallel.ep,
                                      job.model.num_key_value_heads);
  return metered;
}

nlohmann::json collectives_json(const Job& job, Stream& stream, const CollectiveMeter& meter, int steps) {
  const CollectiveCounts counts = meter.counts();  // the library's calls are metered too
  check_same_kinds(job, counts);
  const int world = job.mesh().world();
  const Plan plan = plan_of_traffic(job.config, job.model, world);
  const LeastTraffic least = least_traffic(job.config, job.model, world);
  nlohmann::json all = nlohmann::json::array(), sums = nlohmann::json::array();
  const auto add = [&sums](const std::string& name, double planned, double bytes) {
    sums.push_back({{"name", name},
                    {"sent_bytes", 0.0},
                    {"planned_bytes", planned},
                    {"least_bytes", bytes},
                    {"seconds", 0.0},
                    {"library_seconds", 0.0}});
  };
  for (const PlanPhase& phase : plan.phases) {
    if (!sends(phase.name)) continue;
    add(phase.name, phase.sent,
        is_exchange(phase.name)        ? least.exchange
        : phase.name == kGradientPhase ? least.gradients
                                       : least.tensor_parallel);
  }
  add(kOtherCollectives, 0, 0);
  for (const auto& [kind, count] : counts) {
    const double calls = static_cast<double>(count.calls) / steps;
    const nlohmann::json one = {
        {"group", kind.group},
        {"operation", kind.operation},
        {"ranks", kind.ranks},
        {"dtype", dtype_name(kind.dtype)},
        {"bytes", kind.bytes},
        {"calls", calls},
        {"sent_bytes", static_cast<double>(count.bytes_sent) / steps},
        {"seconds", count.seconds / steps},
        {"library_seconds", calls * library_seconds(job, stream, kind, library_bytes(kind, count))}};
    for (nlohmann::json& sum : sums) {
      if (!of_phase(kind.group, sum["name"].get<std::string>())) continue;
      for (const char* figure : {"sent_bytes", "seconds", "library_seconds"})
        sum[figure] = sum[figure].get<double>() + one[figure].get<double>();
    }
    all.push_back(one);
  }
  return {{"collectives", all}, {"communication", sums}};
}

std::string communication_table(const nlohmann::json& collectives, double exposed) {
  char line[200];
  std::snprintf(line, sizeof(line), "\n%-26s %10s %12s %10s %16s\n", "collectives of a step", "sent MB",
                "least MB", "ms", "library's ms");
  std::string text = line;
  for (const nlohmann::json& sum : collectives["communication"]) {
    if (sum["sent_bytes"] == 0.0) continue;
    std::snprintf(line, sizeof(line), "  %-24s %10.3f %12.3f %10.3f %16.3f\n",
                  sum["name"].get<std::string>().c_str(), sum["sent_bytes"].get<double>() / 1e6,
                  sum["least_bytes"].get<double>() / 1e6, 1e3 * sum["seconds"].get<double>(),
                  1e3 * sum["library_seconds"].get<double>());
    text += line;
  }
  std::snprintf(line, sizeof(line), "  %-24s %10s %12s %10.3f  (of steps with timing events)\n",
                "the step waits for", "", "", 1e3 * exposed);
  return text + line;
}

}  // namespace pesc
