// Which kinds of work can be done on a machine, and what is missing for the others.
#pragma once

#include <string>
#include <vector>

#include "launcher/doctor/machine.h"

namespace pesc {

struct Lack {
  std::string what;     // "MPI does not start: ..."
  std::string way_out;  // a command or what to do
};

// A kind of work, and what is missing for it: nothing where it can be done.
struct Ability {
  std::string key;   // for programs, "cpu_training"
  std::string name;  // "training on the CPU, one rank"
  std::vector<Lack> lacks;
  [[nodiscard]] bool can() const { return lacks.empty(); }
};
// The first one is training on the CPU on one rank. Depends on its arguments alone.
[[nodiscard]] std::vector<Ability> abilities(const BuildFacts& build, const MachineFacts& machine);

}  // namespace pesc
