// What is said of a launch that has ended: to the user, and in launches.jsonl.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "launcher/launch_hosts.h"
#include "launcher/launch_job.h"

namespace pesc {

// Each rank: where it was and why it ended; of those that died, their last lines.
[[nodiscard]] std::string report_of(const JobEnd& end, uint64_t generation);

// The hosts on which ranks died of themselves, not because the job was ended; "" stands for one not known.
[[nodiscard]] std::set<std::string> hosts_of_the_dead(const JobEnd& end);

// Whether any rank came to run: it has left a sign of life, said something, or died. Otherwise mpirun itself
// has refused the launch.
[[nodiscard]] bool ranks_began(const JobEnd& end);

// Where to look when MPI does not start: the settings of Open MPI in `environment` (ends with a null
// pointer), by name and value, or where else there may be some. A sentence.
[[nodiscard]] std::string advice_on_mpi(const char* const* environment);

// Seconds that the steps beyond `first_step` took, by a run's metrics.jsonl: of a step that several launches
// have computed, the last counts.
[[nodiscard]] double seconds_that_count(const std::string& metrics, int64_t first_step);

// Whether this launch has come to train, by a run's metrics.jsonl; before, it may be refused.
[[nodiscard]] bool has_begun(const std::string& metrics, uint64_t generation);

// The newest that any rank has done; 0: none.
[[nodiscard]] int64_t last_step(const JobEnd& end);

// One line of launches.jsonl. `silent`: the hosts that did not answer after this launch, and why.
[[nodiscard]] nlohmann::json record_of(const JobEnd& end, const Placement& placement,
                                       const std::vector<Host>& hosts, uint64_t generation,
                                       int64_t newest_checkpoint);

}  // namespace pesc
