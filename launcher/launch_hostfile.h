// Open MPI's hostfile, read strictly: what is accepted here means what mpirun would take it for, all else is
// refused with file, line and what to write instead. mpirun is given a file that we write.
//
//   # comment
//   node1 slots=8
//   node2 slots=8 max_slots=16
//
// One host a line, with the keywords slots (or cpu, count) and max_slots (max-slots, slots_max, slots-max).
// A host on several lines has a slot for each of them, where none gives a number.
#pragma once

#include <string>
#include <vector>

#include "launcher/launch_hosts.h"

namespace pesc {

// The hosts in order. Those that are this machine, by address too, are called "localhost" or by its host
// name. UsageError.
[[nodiscard]] std::vector<Host> read_hostfile(const std::string& path);
// The text of a hostfile with these hosts.
[[nodiscard]] std::string hostfile_text(const std::vector<Host>& hosts);
// Throws UsageError where the hosts of the file cannot take so many ranks. mpirun would say it too, but only
// after a launch, and in its own words.
void check_slots(const std::string& path, const std::vector<Host>& hosts, int ranks);

}  // namespace pesc
