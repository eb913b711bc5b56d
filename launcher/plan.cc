// pesc plan: the memory, FLOP, link traffic and time of a training run, and whether it fits. Runs on one
// rank, without the device, the data or the weights.
#include "runtime/plan.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "launcher/command_line.h"
#include "launcher/plan_cluster.h"
#include "runtime/config/compute_types.h"
#include "runtime/config/unknown_names.h"
#include "runtime/expert_exchange.h"
#include "runtime/fitting.h"
#include "runtime/hf/atomic_file.h"
#include "runtime/hf/config_json.h"
#include "runtime/metrics.h"

namespace pesc {
namespace {

// The device that the plan assumes, and a text that says which parts of it are assumptions.
struct Machine {
  MachineRates rates;
  MemoryRoom room;
  std::string gpu;   // of the table; empty: a CPU, or a GPU of the figures given
  std::string text;  // "each rank: assuming one H200-141; name another with --gpu (A100-40, ...)"
  bool assumed = false;
};

// The flags' figures in place of the table's. Returns the names of those given.
std::vector<std::string> take_figures(const CommandLine& command, MachineRates& r) {
  std::vector<std::string> given;
  const auto set = [&](const char* flag, double value, double unit, double& to) {
    if (value < 0) throw UsageError(str_cat("--", flag, " is ", value, "; it must be positive"));
    if (value == 0) return;
    given.push_back(str_cat("--", flag, " ", value));
    to = value * unit;
  };
  const double attention = r.attention / r.gemm;
  const double fp8 = r.fp8_gemm / r.gemm;
  set("gemm_tflops", command.gemm_tflops, 1e12, r.gemm);
  r.attention = attention * r.gemm;  // keeps its share of the GEMMs' rate, as FP8 does
  r.fp8_gemm = fp8 * r.gemm;
  set("memory_gbs", command.memory_gbs, 1e9, r.memory);
  set("link_gbs", command.link_gbs, 1e9, r.link);
  set("device_gib", command.device_gib, kGiB, r.device_memory);
  return given;
}

Machine gpu_machine(const ExperimentConfig& config, const CommandLine& command) {
  constexpr size_t kFigures = 4;
  Machine m;
  m.gpu = known_gpu(command.gpu.empty() ? kAssumedGpu : command.gpu);
  m.rates = gpu_rates(m.gpu, config.train.compute_dtype);
  const std::vector<std::string> given = take_figures(command, m.rates);
  m.room.bytes = m.rates.device_memory;
  if (m.rates.fp8_gemm > 0) m.room.fp8 = MemoryRoom::Fp8::kMultiplied;
  const std::string but = given.empty() ? "" : str_cat(", but for ", joined(given));
  if (!command.gpu.empty()) {
    m.text = str_cat("each rank: one ", m.gpu, but);
  } else if (given.size() == kFigures) {
    m.gpu.clear();
    m.rates.peak = m.rates.fp8_peak = 0;
    m.text = str_cat("each rank: a GPU of the figures given, ", joined(given));
  } else {
    m.assumed = true;
    m.text = str_cat("each rank: assuming one ", kAssumedGpu, but, "; name another with --gpu (",
                     joined(gpu_names()), ")");
  }
  return m;
}

Machine cpu_machine(const ExperimentConfig& config, const CommandLine& command) {
  if (!command.gpu.empty()) {
    throw UsageError(
        str_cat("--gpu ", command.gpu,
                ": the experiment runs on the CPU; plan for GPUs with --set parallel.device=CUDA"));
  }
  Machine m;
  m.rates = cpu_rates(config.parallel.num_threads);
  const std::vector<std::string> given = take_figures(command, m.rates);
  m.text = config.parallel.num_threads > 0
               ? str_cat("each rank: ", config.parallel.num_threads, " CPU threads")
               : "each rank: assuming one CPU thread; say how many with --set parallel.num_threads=N";
  if (!given.empty()) m.text += str_cat(", but for ", joined(given));
  m.room.bytes = m.rates.device_memory;
  m.assumed = config.parallel.num_threads == 0 || command.device_gib == 0;
  if (command.device_gib > 0) return m;
  m.room = {host_memory(), MemoryRoom::Of::kHost, MemoryRoom::Against::kAll, MemoryRoom::Fp8::kNo};
  m.text += "; assuming all ranks on this host; give the memory of each with --device_gib";
  return m;
}

Machine machine_of(const ExperimentConfig& config, const CommandLine& command) {
  return config.parallel.device == DeviceKind::kCuda ? gpu_machine(config, command)
                                                     : cpu_machine(config, command);
}

// What train.compute_dtype AUTO stands for on the machine. Throws UsageError where FP8 is asked for and it has
// none.
ExperimentConfig with_gemms_of(const Machine& machine, ExperimentConfig config) {
  if (config.parallel.device != DeviceKind::kCuda) return config;
  const bool fp8 = machine.rates.fp8_gemm > 0;
  if (!config.train.frozen_gemm) config.train.frozen_gemm = fp8 ? FrozenGemm::kFP8 : FrozenGemm::kDequantized;
  if (config.train.frozen_gemm == FrozenGemm::kFP8 && !fp8)
    refuse_fp8(str_cat("they do not run on the ", machine.gpu, " of --gpu"));
  return config;
}

// Whether it fits, and what would where it does not.
struct Fit {
  double needed = 0;  // of a rank
  bool known = false, fits = true;
  std::vector<std::string> changes;
};

Fit judge(const ExperimentConfig& config, const ModelConfig& model, int world, const Machine& machine) {
  const DecoderUse use = training_use(config);
  Fit v;
  v.needed = needed_bytes(with_gemms_of(machine, config), model, world, use, machine.room.against);
  v.known = machine.room.bytes > 0;
  v.fits = !v.known || v.needed <= machine.room.of_rank(world);
  if (!v.fits) v.changes = what_would_fit(config, model, world, use, machine.room);
  return v;
}

nlohmann::json to_json(const ExperimentConfig& config, const Plan& p, const Machine& machine,
                       const Fit& fit) {
  const MachineRates& rates = machine.rates;
  nlohmann::json j = {{"name", config.name},
                      {"recompute_granularity", recompute_name(config.train.recompute_granularity)},
                      {"ranks", p.world},
                      {"dp", p.dp},
                      {"tp", p.tp},
                      {"ep", p.ep},
                      {"trainable_parameters", p.trainable},
                      {"frozen_parameters", p.frozen},
                      {"machine", machine.text},
                      {"assumed", machine.assumed},
                      {"device_bytes", p.memory.arena_bytes()},
                      {"overhead_bytes", p.memory.overhead()},
                      {"connection_bytes", p.memory.connections},
                      {"host_bytes", p.host_bytes},
                      {"tokens_per_step", p.tokens},
                      {"flops_per_step", p.flops},
                      {"fp8_flops_per_step", p.fp8_flops},
                      {"frozen_bytes_per_weight", p.bytes_per_weight},
                      {"exchanged_bytes_per_token", p.exchanged_per_token},
                      {"step_seconds", p.seconds},
                      {"sol_fraction", p.sol_seconds / p.seconds},
                      {"rates",
                       {{"gemm", rates.gemm},
                        {"fp8_gemm", rates.fp8_gemm},
                        {"attention", rates.attention},
                        {"memory", rates.memory},
                        {"link", rates.link},
                        {"device_memory", rates.device_memory}}}};
  if (!machine.gpu.empty()) j["gpu"] = machine.gpu;
  if (p.peak_seconds > 0) {
    j["mfu"] = p.peak_seconds / p.seconds;
    j["rates"]["peak"] = rates.peak;
    if (rates.fp8_peak > 0) j["rates"]["fp8_peak"] = rates.fp8_peak;
  }
  for (const ArenaSize& a : p.memory.arenas) j["arenas"][a.name] = a.bytes;
  for (const PlanPhase& phase : p.phases) {
    j["phases"].push_back({{"name", phase.name},
                           {"flops", phase.flops},
                           {"memory_bytes", phase.bytes},
                           {"sent_bytes", phase.sent},
                           {"seconds", phase.seconds}});
  }
  if (p.tokens_exchange.sent > 0) {
    const auto of = [](const PlannedExchange& e) {
      return nlohmann::json{{"sent_bytes", e.sent}, {"seconds", e.seconds}};
    };
    j["expert_exchange"] = expert_exchange_name(p.exchange);
    j["expert_exchanges"] = {{"TOKENS", of(p.tokens_exchange)}, {"WEIGHTS", of(p.weights_exchange)}};
  }
  if (fit.known) j["fits"] = fit.fits;
  if (fit.known && machine.room.of == MemoryRoom::Of::kHost) j["host_memory"] = machine.room.bytes;
  if (!fit.changes.empty()) j["would_fit"] = fit.changes;
  return j;
}

void print(const Plan& p, const Machine& machine, const std::string& exchange) {
  const MachineRates& rates = machine.rates;
  std::printf("%d ranks: dp %d, tp %d, ep %d; %.2fM trainable parameters, %.3fG frozen\n\n", p.world, p.dp,
              p.tp, p.ep, static_cast<double>(p.trainable) / 1e6, static_cast<double>(p.frozen) / 1e9);
  std::printf("%-24s %12s\n", "memory of a rank", "GiB");
  for (const ArenaSize& a : p.memory.arenas) {
    if (a.bytes > 0) std::printf("  %-22s %12.3f\n", a.name.c_str(), static_cast<double>(a.bytes) / kGiB);
  }
  if (p.bytes_per_weight > 0)
    std::printf("  %-22s %12.3f  bytes each\n", "frozen linears' weights", p.bytes_per_weight);
  std::printf("  %-22s %12.3f\n", "beside the arenas", static_cast<double>(p.memory.overhead()) / kGiB);
  if (p.memory.connections > 0)
    std::printf("  %-22s %12.3f\n", "NCCL", static_cast<double>(p.memory.connections) / kGiB);
  std::printf("  %-22s %12.3f\n", "all", static_cast<double>(p.memory.all()) / kGiB);
  std::printf("  %-22s %12.3f  (host memory, while a checkpoint is written)\n\n", "checkpoint snapshot",
              static_cast<double>(p.host_bytes) / kGiB);
  std::printf("%-24s %12s %12s %12s %10s\n", "step of a rank", "TFLOP", "memory GB", "sent GB", "ms");
  for (const PlanPhase& phase : p.phases) {
    if (phase.seconds == 0) continue;
    std::printf("  %-22s %12.4f %12.3f %12.4f %10.2f\n", phase.name.c_str(), phase.flops / 1e12,
                phase.bytes / 1e9, phase.sent / 1e9, 1e3 * phase.seconds);
  }
  std::printf("  %-22s %12.4f %12s %12s %10.2f  %.1fk tokens/s, %.2f of the speed of light%s\n", "all",
              p.flops / 1e12 / p.world, "", "", 1e3 * p.seconds, p.tokens / p.seconds / 1e3,
              p.sol_seconds / p.seconds, mfu_text(p.peak_seconds / p.seconds).c_str());
  char fp8[48] = "";
  if (p.fp8_flops > 0) std::snprintf(fp8, sizeof(fp8), ", %.4g of FP8 GEMMs", rates.fp8_gemm / 1e12);
  std::printf(
      "\n%s\nat %.4g TFLOP/s of GEMMs%s, %.4g of attention, %.4g GB/s of memory, %.4g GB/s of links, a rank "
      "each\n",
      machine.text.c_str(), rates.gemm / 1e12, fp8, rates.attention / 1e12, rates.memory / 1e9,
      rates.link / 1e9);
  if (p.exchange == ExpertExchange::kTokens)
    std::printf("a token's rows travel %.0f bytes to their experts and back\n", p.exchanged_per_token);
  if (exchange.empty()) return;
  std::printf(
      "expert exchange: %s; a rank would send %.4g GB a step with TOKENS, of which %.2f ms are not hidden, "
      "and %.4g GB with WEIGHTS, %.2f ms\n",
      exchange.c_str(), p.tokens_exchange.sent / 1e9, 1e3 * p.tokens_exchange.seconds,
      p.weights_exchange.sent / 1e9, 1e3 * p.weights_exchange.seconds);
}

void print(const Fit& fit, const MemoryRoom& room, int ranks) {
  if (!fit.known)
    return static_cast<void>(
        std::printf("\nThe memory of this host is not known: give a rank's with --device_gib\n"));
  // Of one rank, or of all that share the host.
  const bool shared = room.of == MemoryRoom::Of::kHost;
  const double needed = fit.needed / kGiB * (shared ? ranks : 1);
  const std::string whose =
      shared ? str_cat(" of this host for ", ranks, ranks == 1 ? " rank" : " ranks") : "";
  if (fit.fits) {
    std::printf("\nfits: %.1f of %.1f GiB%s\n", needed, room.bytes / kGiB, whose.c_str());
    return;
  }
  std::printf("\nDOES NOT FIT: %.1f GiB of %.1f GiB%s.%s\n", needed, room.bytes / kGiB, whose.c_str(),
              fit.changes.empty()
                  ? str_cat(" No recomputation, batch, length, format of the frozen weights or layout makes "
                            "it fit, on up to ",
                            kMostRanks * ranks, " ranks.")
                        .c_str()
              : shared ? " Any of these, for a rank:"
                       : " Any of these:");
  for (const std::string& change : fit.changes) std::printf("  %s\n", change.c_str());
}

// --hosts: all layouts of a cluster, whatever parallel.tp and ep say.
void plan_hosts(ExperimentConfig config, const CommandLine& command) {
  if (config.parallel.device != DeviceKind::kCuda) {
    throw UsageError(
        "--hosts is for hosts with GPUs, and the experiment runs on the CPU; plan for GPUs with --set "
        "parallel.device=CUDA");
  }
  // Of the layouts some spread the experts.
  check_dispatch_chunks(config, static_cast<int64_t>(*command.hosts) * command.gpus_per_host);
  config.parallel.tp = config.parallel.ep = 1;
  check_paths(config, DataUse::kNone);
  const ModelConfig model = config.model.path.empty()
                                ? config.model.shape
                                : read_model_config(config.model.path, config.model.links);
  use_folder_format(config, model);
  check_against_model(config, model, 1);
  const Machine machine = machine_of(config, command);
  report_cluster_plan({.config = with_gemms_of(machine, config),
                       .model = model,
                       .cluster = {.hosts = *command.hosts,
                                   .gpus_per_host = command.gpus_per_host,
                                   .rates = machine.rates,
                                   .network = 1e9 / 8 * command.network_gbit_per_gpu,
                                   .gpu_mtbf = 3600 * command.gpu_mtbf_hours,
                                   .storage = 1e9 * command.storage_gbs},
                       .room = machine.room,
                       .machine = machine.text},
                      command.out);
}

}  // namespace

int run_plan(const Process& process, const CommandLine& command) {
  ExperimentConfig config = read_experiment(process, command);
  run_collectively(process.world, [&] {
    if (process.world.size() != 1) throw UsageError("pesc plan runs on one rank; start it without mpirun");
    if (command.hosts) return plan_hosts(config, command);
    if (command.ranks < 1) throw UsageError(str_cat("--ranks is ", command.ranks, "; it must be at least 1"));
    check_paths(config, DataUse::kNone);
    const ModelConfig model = config.model.path.empty()
                                  ? config.model.shape
                                  : read_model_config(config.model.path, config.model.links);
    use_folder_format(config, model);
    check_against_model(config, model, command.ranks);
    check_dispatch_chunks(config, config.parallel.ep);
    const Machine machine = machine_of(config, command);
    const Plan p = make_plan(with_gemms_of(machine, config), model, command.ranks, machine.rates);
    const Fit fit = judge(config, model, command.ranks, machine);
    print(p, machine, expert_exchange_text(config, command.ranks));
    print(fit, machine.room, command.ranks);
    if (!command.out.empty()) {
      AtomicFile file(command.out);
      file.write(
          to_json(config, p, machine, fit).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) +
          "\n");
      file.commit();
    }
  });
  return 0;
}

}  // namespace pesc
