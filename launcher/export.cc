// pesc export: a tuned model as a folder that other programs load.
#include "runtime/export/export.h"

#include "launcher/command_line.h"
#include "runtime/export/export_folder.h"

namespace pesc {

int run_export(const Process& process, const CommandLine& command) {
  ExperimentConfig config = read_experiment(process, command);
  const HostPlacement placement = place(process, config);
  ExportOptions options;
  run_collectively(process.world, [&] {
    if (command.out.empty()) throw UsageError("pesc export needs --out FOLDER");
    if (process.world.size() != 1) throw UsageError("pesc export runs on one rank; start it without mpirun");
    check_absent(posix_filesystem(), command.out);
    options.out = command.out;
    options.dtype = export_dtype(command.dtype);
    if (!command.format.empty()) options.format = export_format(command.format);
    if (!command.merge_into.empty()) options.merge_into = merge_into(command.merge_into);
    // Any checkpoint loads on any layout, so one rank reads all of it, and without a GPU.
    config.parallel.tp = 1;
    config.parallel.ep = 1;
    config.parallel.device = DeviceKind::kCpu;
  });
  Job job = open_job(process.world, placement, std::move(config), DataUse::kNone);
  run_collectively(process.world, [&] { check_export(job, options); });
  const LoadedCheckpoint checkpoint = open_trained(job, command.checkpoint, CheckpointUse::kExport);
  int64_t bytes = 0;
  run_collectively(process.world, [&] { bytes = export_model(job, checkpoint, options); });
  std::fprintf(stderr, "step %lld written to %s: %s, %.3g GB\n",
               static_cast<long long>(checkpoint.state.step), command.out.c_str(),
               format_name(options.format), static_cast<double>(bytes) * 1e-9);
  return 0;
}

}  // namespace pesc
