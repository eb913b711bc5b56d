// pesc export: a run in which every dense parameter was trained, as an ordinary Hugging Face folder.
#include "runtime/export.h"

#include <filesystem>

#include "launcher/command_line.h"

namespace pesc {

int run_export(const Process& process, const CommandLine& command) {
  ExperimentConfig config = read_experiment(process, command);
  const HostPlacement placement = place(process, config);
  run_collectively(process.world, [&] {
    if (command.out.empty()) throw UsageError("pesc export needs --out FOLDER");
    if (process.world.size() != 1) throw UsageError("pesc export runs on one rank; start it without mpirun");
    if (config.pesc.mode != TrainMode::kFull) {
      throw UsageError(
          "pesc export writes runs of train.mode FULL; this experiment trains adapters on a frozen base");
    }
    // Any checkpoint loads on any layout, so one rank reads all of it.
    config.parallel.tp = 1;
    config.parallel.ep = 1;
  });
  Job job = open_job(process.world, placement, std::move(config), DataUse::kNone);
  const auto decoder = make_inference_decoder(job, 1, 2, 0);
  const int64_t step = load_trainable_weights(job, *decoder, command.checkpoint, CheckpointUse::kExport);
  run_collectively(process.world, [&] { export_dense(job, *decoder, command.out); });
  std::fprintf(stderr, "step %lld written to %s\n", static_cast<long long>(step), command.out.c_str());
  return 0;
}

}  // namespace pesc
