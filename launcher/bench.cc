// pesc bench: times the training step of an experiment and compares it with the speed of light (design
// section 7): the FLOP that the mathematics needs over the GEMM rate measured right after the timed steps, on
// the same ranks.
//
// Rows come from data.train where the experiment has it, else they are full rows of random tokens. A
// model.shape, or one that --shape names, has random weights. Nothing is written but the report.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "launcher/command_line.h"
#include "ops/core/philox.h"
#include "runtime/evaluation.h"
#include "runtime/gemm_rate.h"
#include "runtime/hf/atomic_file.h"
#include "runtime/training_step.h"

namespace pesc {
namespace {

constexpr int kWarmUp = 3;

// Row `index` of the synthetic stream: seq_len random tokens, all supervised.
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
  explicit BatchSource(Job& job) : job_(job) {
    if (job.config.data.train.empty()) return;
    data_ = load_training_data(job);
    sampler_ = std::make_unique<Sampler>(data_->epoch_size(), job.config.train.seed);
  }
  [[nodiscard]] std::vector<std::string> tags() const {
    return data_ == nullptr ? std::vector<std::string>{"random"} : data_->tags();
  }
  [[nodiscard]] std::vector<LocalBatch> step(int64_t step) const {
    const TrainSection& t = job_.config.train;
    std::vector<LocalBatch> batches;
    const BatchPlan plan{t.global_batch, t.micro_batch, job_.mesh().dp()};
    for (int64_t m = 0; m < plan.micro_batches(); ++m) {
      const Range mine = plan.local_range(step * t.global_batch, m, job_.mesh().dp_rank());
      if (data_ != nullptr) {
        batches.push_back(make_local_batch(*data_, *sampler_, mine.begin, mine.size()));
        continue;
      }
      LocalBatch b;
      for (int64_t i = mine.begin; i < mine.end; ++i) add_random_row(i, t.seq_len, job_.model.vocab, b);
      batches.push_back(std::move(b));
    }
    return batches;
  }

 private:
  Job& job_;
  std::unique_ptr<Dataset> data_;
  std::unique_ptr<Sampler> sampler_;
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

}  // namespace

int run_bench(const Process& process, const CommandLine& command) {
  ExperimentConfig config = read_experiment(process, command);
  const HostPlacement placement = place(process, config);
  Job job = open_job(process.world, placement, std::move(config), DataUse::kAll, BaseWeights::kRandom);
  std::unique_ptr<BatchSource> source;
  together(process.world, [&] { source = std::make_unique<BatchSource>(job); });
  const auto decoder = make_training_decoder(job, job.config.train.micro_batch, job.config.train.seq_len);
  TrainingStep training(job, *decoder, source->tags());

  std::vector<double> seconds, light_flops, tokens, sent;
  const int steps = std::max(command.steps, 1);
  for (int64_t i = 0; i < kWarmUp + steps; ++i) {
    StepInput input;
    input.step = i;
    input.lr = job.config.train.lr.lr;
    input.micro_batches = source->step(i);
    process.world.barrier();
    const StepMetrics m = training.run(input, {}).metrics;
    if (i < kWarmUp) continue;
    seconds.push_back(m.seconds);
    light_flops.push_back(m.flops / m.seconds);
    tokens.push_back(m.tokens / m.seconds);
    sent.push_back(static_cast<double>(m.bytes_sent));
  }
  process.world.barrier();
  double rate = 0;
  for (const double r : sum_over_ranks(process.world, {measured_gemm_rate(decoder->stream(), 2.0)}))
    rate += r;
  int64_t arenas = 0;
  for (const ArenaSize& a : decoder->arenas()) arenas += a.bytes;

  together(process.world, [&] {
    if (!job.first()) return;
    const nlohmann::json j = {{"name", job.config.name},
                              {"ranks", job.mesh().world()},
                              {"tp", job.mesh().tp()},
                              {"ep", job.mesh().ep()},
                              {"threads_per_rank", placement.threads},
                              {"steps", steps},
                              {"step_seconds_median", median(seconds)},
                              {"tokens_per_second_median", median(tokens)},
                              {"gemm_flops_per_second", rate},
                              {"share_of_light_median", median(light_flops) / rate},
                              {"bytes_sent_rank0_median", median(sent)},
                              {"arena_bytes_rank0", arenas}};
    std::printf("%s\n", j.dump(2).c_str());
    std::printf(
        "\n%s: %d ranks (tp %d, ep %d) x %d threads: %.1f ms a step, %.1fk tokens/s, %.2f of the speed of "
        "light "
        "(sgemm %.0f GFLOP/s in this run), %.1f MiB of arenas\n",
        job.config.name.c_str(), job.mesh().world(), job.mesh().tp(), job.mesh().ep(), placement.threads,
        1e3 * median(seconds), median(tokens) / 1e3, median(light_flops) / rate, rate / 1e9,
        static_cast<double>(arenas) / (1 << 20));
    if (command.out.empty()) return;
    AtomicFile file(command.out);
    file.write(j.dump(2) + "\n");
    file.commit();
  });
  return 0;
}

}  // namespace pesc
