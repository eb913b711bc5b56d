// pesc bench: times the training step of an experiment and compares it with the speed of light: the FLOP that
// the mathematics needs, over the GEMM rates that the same ranks measure right after the timed steps, that of FP8
// for what is multiplied in FP8 (tests/bench/README.md).
//
// The time by phase is measured in additional steps, by timing events on the stream.
//
// Rows come from data.train if the experiment has it. Otherwise they are random tokens: full rows, or rows of
// random lengths from --shortest to data.max_seq_length. Either are packed as data.packing says. A model.shape, or the shape of --shape, has random
// weights, which are made tensor by tensor and quantised at once where train.frozen_dtype says so. Nothing is
// written except the report.
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "launcher/bench_collectives.h"
#include "launcher/command_line.h"
#include "model/device_memory.h"
#include "ops/attention.h"
#include "ops/core/philox.h"
#include "runtime/data/packing.h"
#include "runtime/data/row_stream.h"
#include "runtime/decoder_options.h"
#include "runtime/expert_exchange.h"
#include "runtime/hf/atomic_file.h"
#include "runtime/job_rates.h"
#include "runtime/machine.h"
#include "runtime/metrics.h"
#include "runtime/training_step.h"

namespace pesc {
namespace {

constexpr int kWarmUp = 3;
constexpr int kPhaseSteps = 3;  // steps timed by phase, after the others, since timing events cost a little

constexpr int64_t kRandomRows = 1 << 20;  // an epoch of them, where they are packed

// Tokens of row `index`: from `shortest` to `longest`, each as likely.
int64_t random_length(int64_t index, int64_t shortest, int64_t longest) {
  const PhiloxCounter bits = philox({0, static_cast<uint32_t>(index), 1, 0}, {0, 0});
  return shortest + static_cast<int64_t>(bits[0] % static_cast<uint64_t>(longest - shortest + 1));
}

// Row `index` of the synthetic stream: random tokens, all supervised.
void add_random_row(int64_t index, int64_t length, int64_t vocab, LocalBatch& out) {
  for (int64_t t = 0; t < length; ++t) {
    const PhiloxCounter bits = philox({static_cast<uint32_t>(t), static_cast<uint32_t>(index), 0, 0}, {0, 0});
    out.host.tokens.push_back(static_cast<int32_t>(bits[0] % static_cast<uint64_t>(vocab)));
    out.host.targets.push_back(static_cast<int32_t>(bits[1] % static_cast<uint64_t>(vocab)));
    out.host.positions.push_back(static_cast<int32_t>(t));
    out.host.samples.push_back(index);
    out.tags.push_back(0);
  }
  out.host.starts.push_back(static_cast<int32_t>(out.host.tokens.size()));
}

class BatchSource {
 public:
  // `shortest`: tokens, at least 1; absent: full rows.
  BatchSource(Job& job, std::optional<int> shortest)
      : job_(job), shortest_(shortest ? *shortest : job.config.data.max_seq_length) {
    const int64_t max_seq_length = job.config.data.max_seq_length;
    if (shortest_ > max_seq_length)
      throw UsageError(str_cat("--shortest ", shortest_,
                               ": a row has from 1 to data.max_seq_length = ", max_seq_length, " tokens"));
    if (job.config.data.train.empty()) {
      if (job.config.data.packing == PackingPolicy::kNone) return;
      packed_ = std::make_unique<PackedRows>(kRandomRows, max_seq_length, job.config.train.seed,
                                             [this](int64_t index) { return length(index); });
      return;
    }
    if (shortest)
      throw UsageError("--shortest is for random rows, and data.train gives rows: leave one of them out");
    data_ = load_training_data(job);
    rows_ = make_row_stream(job, *data_);
  }
  [[nodiscard]] std::vector<std::string> tags() const {
    return data_ == nullptr ? std::vector<std::string>{"random"} : data_->tags();
  }
  [[nodiscard]] std::vector<LocalBatch> step(int64_t step) const {
    const TrainSection& t = job_.config.train;
    std::vector<LocalBatch> batches;
    const BatchPlan plan{t.global_batch_size, t.micro_batch_rows(), job_.mesh().dp()};
    for (int64_t m = 0; m < plan.micro_batches(); ++m) {
      const Range mine = plan.local_range(step * t.global_batch_size, m, job_.mesh().dp_rank());
      if (rows_ != nullptr) {
        batches.push_back(rows_->batch(mine));
        continue;
      }
      LocalBatch b;
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        for (const int64_t row :
             packed_ == nullptr ? std::span<const int64_t>(&i, 1) : packed_->conversations(i))
          add_random_row(row, length(row), job_.model.vocab_size, b);
      }
      batches.push_back(std::move(b));
    }
    return batches;
  }

 private:
  [[nodiscard]] int64_t length(int64_t index) const {
    return random_length(index, shortest_, job_.config.data.max_seq_length);
  }

  Job& job_;
  int64_t shortest_;  // tokens of a random row
  std::unique_ptr<Dataset> data_;
  std::unique_ptr<RowStream> rows_;     // of data.train
  std::unique_ptr<PackedRows> packed_;  // of random rows
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

struct Timing {
  std::vector<double> seconds, tokens, sent;  // of each step
  std::vector<double> flops, fp8_flops;       // likewise; fp8_flops are some of flops
  std::array<double, kPhases> phases{};       // seconds of a step, of this rank
};

// With several ranks the meter then holds the collectives of kPhaseSteps more steps.
Timing time_steps(Communicator& world, Job& job, Decoder& decoder, const BatchSource& source,
                  TrainingStep& training, int steps, CollectiveMeter& meter) {
  Timing t;
  const auto run = [&](int64_t i) {
    StepInput input;
    input.step = i;
    input.lr = job.config.train.lr.lr;
    input.micro_batches = source.step(i);
    decoder.stream().synchronize();
    world.barrier();
    // Includes the device's work, for which the step itself does not wait.
    const auto start = std::chrono::steady_clock::now();
    StepMetrics m = training.run(input, {}).metrics;
    decoder.stream().synchronize();
    m.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return m;
  };
  for (int64_t i = 0; i < kWarmUp + steps; ++i) {
    const StepMetrics m = run(i);
    if (job.first()) std::fprintf(stderr, "step %lld: %.1f ms\n", static_cast<long long>(i), 1e3 * m.seconds);
    if (i < kWarmUp) continue;
    t.seconds.push_back(m.seconds);
    t.flops.push_back(m.flops);
    t.fp8_flops.push_back(m.fp8_flops);
    t.tokens.push_back(m.tokens / m.seconds);
    t.sent.push_back(static_cast<double>(m.bytes_sent));
  }
  decoder.stream().start_clock(Phase::kElementwise);
  for (int64_t i = 0; i < kPhaseSteps; ++i) (void)run(kWarmUp + steps + i);
  t.phases = decoder.stream().stop_clock();
  for (double& seconds : t.phases) seconds /= kPhaseSteps;
  if (world.size() == 1) return t;
  meter.reset();
  meter.start_timing();
  for (int64_t i = 0; i < kPhaseSteps; ++i) (void)run(kWarmUp + steps + kPhaseSteps + i);
  meter.stop_timing(decoder.stream());
  return t;
}

// The median over the steps of the time that their FLOP take at the rates, over the time that they took; 0 where
// the rates are not known.
double median_share(const Timing& t, const GemmRates& rates) {
  std::vector<double> shares;
  for (size_t i = 0; i < t.seconds.size(); ++i)
    shares.push_back(rates.seconds(t.flops[i], t.fp8_flops[i]) / t.seconds[i]);
  return median(shares);
}

// The most memory that this process has had in the host's RAM so far.
int64_t host_peak_bytes() {
  rusage usage{};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? int64_t{usage.ru_maxrss} * 1024 : 0;
}

struct Measured {
  Timing timing;
  GemmRates rates, peaks;       // of all ranks
  double load_seconds = 0;      // to make or read the weights
  int64_t load_peak_bytes = 0;  // host_peak_bytes behind it
};

nlohmann::json to_json(const Job& job, const HostPlacement& placement, Decoder& decoder,
                       const Measured& measured) {
  const Timing& t = measured.timing;
  nlohmann::json j = {
      {"name", job.config.name},
      {"ranks", job.mesh().world()},
      {"tp", job.mesh().tp()},
      {"ep", job.mesh().ep()},
      {"threads_per_rank", placement.threads},
      {"compute_dtype", dtype_name(job.config.train.compute_dtype)},
      {"frozen_dtype", frozen_format_name(decoder.parameters().layers.front().o.base.type.format)},
      {"recompute_granularity", recompute_name(job.config.train.recompute_granularity)},
      {"steps", t.seconds.size()},
      {"step_seconds_median", median(t.seconds)},
      {"step_seconds", t.seconds},
      {"tokens_per_second_median", median(t.tokens)},
      {"gemm_flops_per_second", measured.rates.compute},
      {"sol_fraction_median", median_share(t, measured.rates)},
      {"bytes_sent_rank0_median", median(t.sent)},
      {"load_seconds", measured.load_seconds},
      {"load_host_peak_bytes_rank0", measured.load_peak_bytes},
      {"frozen_bytes_per_weight", decoder.parameters().frozen_bytes_per_weight()}};
  if (measured.rates.fp8 > 0) {
    j["fp8_gemm_flops_per_second"] = measured.rates.fp8;
    j["fp8_flops_share"] = median(t.fp8_flops) / median(t.flops);
  }
  if (const double mfu = median_share(t, measured.peaks); mfu > 0) j["mfu_median"] = mfu;
  if (const std::string exchange = expert_exchange_text(job.config, job.mesh().world()); !exchange.empty())
    j["expert_exchange"] = exchange;
  int64_t bytes = 0;
  for (const ArenaSize& a : decoder.arenas()) {
    j["arenas_rank0"][a.name] = a.bytes;
    bytes += a.bytes;
  }
  j["arena_bytes_rank0"] = bytes;
  for (int p = 0; p < kPhases; ++p)
    j["phase_seconds_rank0"][phase_name(static_cast<Phase>(p))] = t.phases[static_cast<size_t>(p)];
  if (job.device.kind == DeviceKind::kCuda) {
    const cuda::DeviceInfo info = cuda::device_info(job.device.index);
    j["device"] = info.name;
    j["versions"] = info.versions;
    j["attention"] = attention_library(decoder.stream());
    const DecoderOptions options =
        decoder_options(job.config, job.mesh(), job.device, training_use(job.config));
    const DeviceMemory planned = device_memory(job.model, job.config.pesc, job.mesh(), options);
    j["stream_workspace_bytes_rank0"] = planned.stream_workspaces;
    j["device_bytes_planned"] = planned.all();
    // The steps give nothing back, so this is their peak; the context and what the libraries keep count. Memory
    // of the loading and of the measured GEMM rates has been given back.
    j["device_bytes_taken"] = info.total_bytes - info.free_bytes;
  }
  return j;
}

// "GEMMs in BF16: 670.1 TFLOP/s in this run", and FP8's where some are in FP8.
std::string rates_text(const Job& job, const nlohmann::json& j, const GemmRates& rates) {
  char text[160];
  std::snprintf(text, sizeof(text), "GEMMs in %s: %.1f TFLOP/s in this run",
                dtype_name(job.config.train.compute_dtype), rates.compute / 1e12);
  if (rates.fp8 == 0) return text;
  const size_t n = std::strlen(text);
  std::snprintf(text + n, sizeof(text) - n, "; in FP8: %.1f, for %.0f %% of the FLOP", rates.fp8 / 1e12,
                100 * j["fp8_flops_share"].get<double>());
  return text;
}

void print(const Job& job, const HostPlacement& placement, const nlohmann::json& j,
           const Measured& measured) {
  const Timing& t = measured.timing;
  double sum = 0;
  std::printf("\n%-24s %10s\n", "phase of a step", "ms");
  for (int p = 0; p < kPhases; ++p) {
    const double seconds = t.phases[static_cast<size_t>(p)];
    sum += seconds;
    if (seconds > 0) std::printf("  %-22s %10.2f\n", phase_name(static_cast<Phase>(p)), 1e3 * seconds);
  }
  std::printf(
      "  %-22s %10.2f  (of steps with timing events; waits for the host are in the phase in which they "
      "happen)\n",
      "all", 1e3 * sum);
  std::printf(
      "\n%s: %d ranks (tp %d, ep %d) x %d threads, %s: %.1f ms a step, %.1fk tokens/s, %.3f of the speed of "
      "light (%s)%s, %.2f GiB of arenas",
      job.config.name.c_str(), job.mesh().world(), job.mesh().tp(), job.mesh().ep(), placement.threads,
      dtype_name(job.config.train.compute_dtype), 1e3 * median(t.seconds), median(t.tokens) / 1e3,
      j["sol_fraction_median"].get<double>(), rates_text(job, j, measured.rates).c_str(),
      mfu_text(j.value("mfu_median", 0.0)).c_str(), j["arena_bytes_rank0"].get<double>() / kGiB);
  if (const double bytes = j["frozen_bytes_per_weight"].get<double>(); bytes > 0)
    std::printf(" (frozen linears in %s: %.3f bytes a weight)", j["frozen_dtype"].get<std::string>().c_str(),
                bytes);
  if (j.contains("device_bytes_taken"))
    std::printf(", %.2f GiB of the device taken, %.2f planned; attention: %s",
                j["device_bytes_taken"].get<double>() / kGiB, j["device_bytes_planned"].get<double>() / kGiB,
                j["attention"].get<std::string>().c_str());
  if (j.contains("expert_exchange"))
    std::printf("; expert exchange: %s", j["expert_exchange"].get<std::string>().c_str());
  std::printf("; weights there after %.1f s, %.2f GiB of the host taken at most until then\n",
              measured.load_seconds, static_cast<double>(measured.load_peak_bytes) / kGiB);
}

}  // namespace

int run_bench(const Process& process, const CommandLine& command) {
  ExperimentConfig config = read_experiment(process, command);
  const HostPlacement placement = place(process, config);
  CollectiveMeter meter;
  std::unique_ptr<Communicator> metered;  // outlives the job
  Job job = open_job(process.world, placement, std::move(config), DataUse::kAll, BaseWeights::kRandom);
  metered = meter_ranks(job, process.world, meter);
  std::unique_ptr<BatchSource> source;
  run_collectively(process.world, [&] { source = std::make_unique<BatchSource>(job, command.shortest); });
  Measured measured;
  const auto start = std::chrono::steady_clock::now();
  const auto decoder =
      make_training_decoder(job, job.config.train.micro_batch_rows(), job.config.data.max_seq_length);
  decoder->stream().synchronize();
  measured.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  measured.load_peak_bytes = host_peak_bytes();
  TrainingStep training(job, *decoder, source->tags());

  measured.timing =
      time_steps(process.world, job, *decoder, *source, training, std::max(command.steps, 1), meter);
  process.world.barrier();
  measured.rates = measure_rates(job, *decoder, 2.0);
  measured.peaks = peak_rates(job);
  const nlohmann::json collectives =
      metered ? collectives_json(job, decoder->stream(), meter, kPhaseSteps) : nlohmann::json();

  run_collectively(process.world, [&] {
    if (!job.first()) return;
    nlohmann::json j = to_json(job, placement, *decoder, measured);
    if (metered) j.update(collectives);
    std::printf("%s\n", j.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    if (metered) {
      const double exposed = measured.timing.phases[static_cast<size_t>(Phase::kCommunication)];
      std::fputs(communication_table(collectives, exposed).c_str(), stdout);
    }
    print(job, placement, j, measured);
    if (command.out.empty()) return;
    AtomicFile file(command.out);
    file.write(j.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    file.commit();
  });
  return 0;
}

}  // namespace pesc
