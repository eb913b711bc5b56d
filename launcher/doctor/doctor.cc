// pesc doctor: what this machine has, what can run on it, and what is missing for what. It starts no MPI itself.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "launcher/command_line.h"
#include "launcher/doctor/machine.h"
#include "launcher/doctor/report.h"
#include "ops/core/check.h"
#include "runtime/terminal/terminal.h"

namespace pesc {

int run_doctor(const CommandLine& command) {
  // The question is what MPI does when it starts here; under mpirun it would answer for that mpirun.
  if (std::getenv("OMPI_COMM_WORLD_RANK") != nullptr)
    throw UsageError(
        "pesc doctor looks at one machine; start it without mpirun, on each host by ssh or srun");
  const BuildFacts build = look_at_build();
  const MachineFacts machine = look_at_machine(command.dir);
  const std::vector<Fact> found = facts(build, machine);
  const std::vector<Ability> can = abilities(build, machine);
  const std::string text =
      command.json
          ? doctor_json(found, can).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"
          : doctor_text(found, can,
                        uses_colour(STDOUT_FILENO) ? DoctorColours::kTerminal : DoctorColours::kNone);
  std::fwrite(text.data(), 1, text.size(), stdout);
  return can.front().can() ? 0 : 1;
}

}  // namespace pesc
