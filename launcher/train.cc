// pesc train: tunes on the ranks of this job, resuming from the newest checkpoint of run_dir.
#include <csignal>
#include <cstdio>

#include "launcher/command_line.h"
#include "runtime/trainer.h"

namespace pesc {
namespace {

void save_and_stop(int) {
  request_preemption();
}

}  // namespace

void save_and_stop_on_signals() {
  std::signal(SIGTERM, save_and_stop);
  std::signal(SIGUSR1, save_and_stop);
}

int run_train(const Process& process, const CommandLine& command) {
  ExperimentConfig config = read_experiment(process, command);
  const HostPlacement placement = place(process, config);
  save_and_stop_on_signals();
  process.watch.start(config.recovery);
  if (command.generation > 0) {
    together(process.world,
             [&] { process.watch.report_to(config.run_dir, command.generation, config.faults); });
  }
  Job job = open_job(process.world, placement, std::move(config), DataUse::kAll);
  Trainer trainer(job, process.watch, command.generation);
  if (job.first()) {
    int64_t bytes = 0;
    for (const ArenaSize& a : trainer.memory()) bytes += a.bytes;
    std::fprintf(stderr,
                 "%d ranks: dp %d, tp %d, ep %d, %d threads each; %.1f MiB of arenas and buffers on rank 0\n",
                 job.mesh().world(), job.mesh().dp(), job.mesh().tp(), job.mesh().ep(), placement.threads,
                 static_cast<double>(bytes) / (1 << 20));
  }
  const TrainResult result = trainer.run();
  if (job.first() && result.ran == 0) {
    std::fprintf(stderr, "nothing to do: %s stands at step %lld already; remove it to start anew\n",
                 job.config.run_dir.c_str(), static_cast<long long>(result.steps));
  } else if (job.first()) {
    std::fprintf(stderr, "%s after step %lld, %.1f s, loss %.4f; see %s\n",
                 result.preempted ? "stopped and saved" : "done", static_cast<long long>(result.steps),
                 result.seconds, result.loss, job.config.run_dir.c_str());
  }
  return static_cast<int>(result.preempted ? ExitCode::kPreempted : ExitCode::kOk);
}

}  // namespace pesc
