// How many CPUs the control group of this process may use: what a container was given with --cpus, or a pod
// with a limit, whatever the number of cores that it sees.
#pragma once

#include <string>

namespace pesc {

// The smallest quota / period of the group and all groups above it, in version 2 (cpu.max) and version 1
// (cpu.cfs_quota_us, cpu.cfs_period_us). 0: no bound, or none that can be read. `root` stands before
// /proc/self/cgroup, /proc/self/mountinfo and the mount points, for tests.
[[nodiscard]] double cpu_quota(const std::string& root = "");

}  // namespace pesc
