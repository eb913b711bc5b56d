// pesc report: a page that shows one run, or several side by side.
#include <cstdint>
#include <cstdio>

#include "launcher/command_line.h"
#include "launcher/standard_output.h"
#include "runtime/report/report_page.h"

namespace pesc {

int run_report(const Process& process, const CommandLine& command) {
  run_collectively(process.world, [&] {
    if (command.runs.empty()) throw UsageError("pesc report needs --run DIR, the run_dir of a run");
    if (command.out.empty()) throw UsageError("pesc report needs --out FILE.html");
    if (process.world.size() != 1) throw UsageError("pesc report runs on one rank; start it without mpirun");
    check_out_file(command.out);
    const int64_t bytes = write_report(command.runs, command.out);
    std::fprintf(stderr, "%zu %s written to %s: %.2f MB\n", command.runs.size(),
                 command.runs.size() == 1 ? "run" : "runs", command.out.c_str(),
                 static_cast<double>(bytes) * 1e-6);
  });
  return 0;
}

}  // namespace pesc
