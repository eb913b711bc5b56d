// pesc train: tunes on the ranks of this job, resuming from the newest checkpoint of run_dir.
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <string>

#include "launcher/command_line.h"
#include "ops/core/check.h"
#include "runtime/data/show_row.h"
#include "runtime/terminal/terminal.h"
#include "runtime/trainer.h"

namespace pesc {
namespace {

void save_and_stop(int) {
  request_preemption();
}

std::string last_words(const TrainResult& r, const std::string& run_dir) {
  if (r.ran == 0 && r.preempted)
    return str_cat("stopped in the evaluation at step ", r.steps, ", which is saved; see ", run_dir);
  if (r.ran == 0 && r.evaluated)
    return str_cat("done: the evaluation at step ", r.steps, " has been made up for; see ", run_dir);
  if (r.ran == 0 && r.ended_early)
    return str_cat("nothing to do: the run in ", run_dir, " has ended early at step ", r.steps,
                   "; with train.early_stopping_patience 0 or a larger one it goes on");
  if (r.ran == 0)
    return str_cat("nothing to do: ", run_dir, " stands at step ", r.steps,
                   " already; remove it to start anew");
  char text[128];
  std::snprintf(text, sizeof(text), "%s after step %lld, %.1f s, loss %.4f; see ",
                r.preempted     ? "stopped and saved"
                : r.ended_early ? "ended early (train.early_stopping_patience)"
                                : "done",
                static_cast<long long>(r.steps), r.seconds, r.loss);
  return text + run_dir;
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
  if (command.launch_id > 0) {
    run_collectively(process.world, [&] {
      process.watch.report_to(config.run_dir, command.launch_id, config.debug.faults);
    });
  }
  Job job = open_job(process.world, placement, std::move(config), DataUse::kAll);
  Trainer trainer(job, process.watch, command.launch_id);
  if (job.first()) {
    int64_t bytes = 0;
    for (const ArenaSize& a : trainer.memory()) bytes += a.bytes;
    std::fprintf(stderr,
                 "%d ranks: dp %d, tp %d, ep %d, %d threads each; %.1f MiB of arenas and buffers on rank 0\n",
                 job.mesh().world(), job.mesh().dp(), job.mesh().tp(), job.mesh().ep(), placement.threads,
                 static_cast<double>(bytes) / (1 << 20));
  }
  if (job.first() && command.show_rows > 0) {
    const Marks marks = uses_colour(STDERR_FILENO) ? Marks::kColour : Marks::kBrackets;
    for (int64_t i = 0; i < command.show_rows; ++i)
      std::fprintf(stderr, "row %lld: %s\n", static_cast<long long>(i), trainer.shown_row(i, marks).c_str());
  }
  const TrainResult result = trainer.run();
  if (job.first()) std::fprintf(stderr, "%s\n", last_words(result, job.config.run_dir).c_str());
  return static_cast<int>(result.preempted ? ExitCode::kPreempted : ExitCode::kOk);
}

}  // namespace pesc
