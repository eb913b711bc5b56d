// pesc plan: what a training run will take of memory, arithmetic, links and time, and whether it fits; on one
// rank, without the device, the data or the weights.
#include "runtime/plan.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "launcher/command_line.h"
#include "runtime/hf/atomic_file.h"
#include "runtime/hf/config_json.h"

namespace pesc {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

MachineRates rates_of(const ExperimentConfig& config, const CommandLine& command) {
  MachineRates r = usual_rates(config.parallel.device, config.train.compute, config.parallel.threads);
  const auto set = [](double value, double unit, double& to) {
    if (value > 0) to = value * unit;
  };
  set(command.gemm_tflops, 1e12, r.gemm);
  set(command.memory_gbs, 1e9, r.memory);
  set(command.link_gbs, 1e9, r.link);
  set(command.device_gib, kGiB, r.device_memory);
  return r;
}

nlohmann::json to_json(const ExperimentConfig& config, const Plan& p, const MachineRates& rates, bool fits,
                       const std::vector<std::string>& changes) {
  nlohmann::json j = {{"name", config.name},
                      {"recompute", recompute_name(config.train.recompute)},
                      {"ranks", p.world},
                      {"dp", p.dp},
                      {"tp", p.tp},
                      {"ep", p.ep},
                      {"trained_parameters", p.trained},
                      {"frozen_parameters", p.frozen},
                      {"device_bytes", p.device_bytes()},
                      {"overhead_bytes", rates.overhead},
                      {"connection_bytes", p.connection_bytes},
                      {"host_bytes", p.host_bytes},
                      {"tokens_per_step", p.tokens},
                      {"flops_per_step", p.flops},
                      {"exchanged_bytes_per_token", p.exchanged_per_token},
                      {"step_seconds", p.seconds},
                      {"share_of_light", p.light_seconds / p.seconds},
                      {"rates",
                       {{"gemm", rates.gemm},
                        {"attention", rates.attention},
                        {"memory", rates.memory},
                        {"link", rates.link},
                        {"device_memory", rates.device_memory}}}};
  for (const ArenaSize& a : p.arenas) j["arenas"][a.name] = a.bytes;
  for (const PlanPhase& phase : p.phases) {
    j["phases"].push_back({{"name", phase.name},
                           {"flops", phase.flops},
                           {"memory_bytes", phase.bytes},
                           {"sent_bytes", phase.sent},
                           {"seconds", phase.seconds}});
  }
  if (rates.device_memory > 0) j["fits"] = fits;
  if (!changes.empty()) j["would_fit"] = changes;
  return j;
}

void print(const Plan& p, const MachineRates& rates) {
  std::printf("%d ranks: dp %d, tp %d, ep %d; %.2fM parameters trained, %.3fG frozen\n\n", p.world, p.dp,
              p.tp, p.ep, static_cast<double>(p.trained) / 1e6, static_cast<double>(p.frozen) / 1e9);
  std::printf("%-24s %12s\n", "memory of a rank", "GiB");
  for (const ArenaSize& a : p.arenas) {
    if (a.bytes > 0) std::printf("  %-22s %12.3f\n", a.name.c_str(), static_cast<double>(a.bytes) / kGiB);
  }
  std::printf("  %-22s %12.3f\n", "beside the arenas", rates.overhead / kGiB);
  if (p.connection_bytes > 0)
    std::printf("  %-22s %12.3f\n", "NCCL", static_cast<double>(p.connection_bytes) / kGiB);
  std::printf("  %-22s %12.3f\n", "all", p.all_bytes(rates) / kGiB);
  std::printf("  %-22s %12.3f  (host memory, while a checkpoint is written)\n\n", "checkpoint snapshot",
              static_cast<double>(p.host_bytes) / kGiB);
  std::printf("%-24s %12s %12s %12s %10s\n", "step of a rank", "TFLOP", "memory GB", "sent GB", "ms");
  for (const PlanPhase& phase : p.phases) {
    if (phase.seconds == 0) continue;
    std::printf("  %-22s %12.4f %12.3f %12.4f %10.2f\n", phase.name.c_str(), phase.flops / 1e12,
                phase.bytes / 1e9, phase.sent / 1e9, 1e3 * phase.seconds);
  }
  std::printf("  %-22s %12.4f %12s %12s %10.2f  %.1fk tokens/s, %.2f of the speed of light\n", "all",
              p.flops / 1e12 / p.world, "", "", 1e3 * p.seconds, p.tokens / p.seconds / 1e3,
              p.light_seconds / p.seconds);
  std::printf(
      "\nat %.4g TFLOP/s of products, %.4g of attention, %.4g GB/s of memory, %.4g GB/s of links, a rank "
      "each\n"
      "a token's rows travel %.0f bytes to their experts and back\n",
      rates.gemm / 1e12, rates.attention / 1e12, rates.memory / 1e9, rates.link / 1e9, p.exchanged_per_token);
}

}  // namespace

int run_plan(const Process& process, const CommandLine& command) {
  const ExperimentConfig config = read_experiment(process, command);
  together(process.world, [&] {
    if (process.world.size() != 1) throw UsageError("pesc plan runs on one rank; start it without mpirun");
    if (command.ranks < 1) throw UsageError(str_cat("--ranks ", command.ranks, ": at least 1"));
    check_paths(config, DataUse::kNone);
    const ModelConfig model = config.model.path.empty()
                                  ? config.model.shape
                                  : read_model_config(config.model.path, config.model.links);
    check_against_model(config, model, command.ranks);
    const MachineRates rates = rates_of(config, command);
    const Plan p = make_plan(config, model, command.ranks, rates);
    const double bytes = p.all_bytes(rates);
    const bool fits = rates.device_memory == 0 || bytes <= rates.device_memory;
    const auto changes =
        fits ? std::vector<std::string>{} : what_would_fit(config, model, command.ranks, rates);
    print(p, rates);
    if (rates.device_memory > 0 && fits)
      std::printf("\nfits: %.1f of %.1f GiB\n", bytes / kGiB, rates.device_memory / kGiB);
    if (!fits) {
      std::printf("\nDOES NOT FIT: %.1f GiB of %.1f GiB.%s\n", bytes / kGiB, rates.device_memory / kGiB,
                  changes.empty()
                      ? " No single change of recomputation, batch, length or layout makes it fit."
                      : " Any of these:");
      for (const std::string& change : changes) std::printf("  %s\n", change.c_str());
    }
    if (!command.out.empty()) {
      AtomicFile file(command.out);
      file.write(to_json(config, p, rates, fits, changes).dump(2) + "\n");
      file.commit();
    }
  });
  return 0;
}

}  // namespace pesc
