// Reports of a launch that has ended, for the user and for launches.jsonl.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "launcher/launch_hosts.h"
#include "launcher/launch_job.h"

namespace pesc {

// For the user: where each rank was and why it ended, and the last lines of the ranks that died.
[[nodiscard]] std::string report_of(const JobEnd& end, uint64_t launch_id);

// The hosts on which ranks died by themselves, not because the job was ended; "" stands for an unknown host.
[[nodiscard]] std::set<std::string> hosts_of_the_dead(const JobEnd& end);

// Whether any rank has begun: it has a heartbeat, has printed something, or has died. Otherwise mpirun itself
// refused the launch.
[[nodiscard]] bool ranks_began(const JobEnd& end);

// A sentence on where to look when MPI does not start: the Open MPI settings in `environment` (which ends
// with a null pointer), by name and value, or where else there may be settings.
[[nodiscard]] std::string advice_on_mpi(const char* const* environment);

// The seconds of the steps after `first_step`, from the text of a run's metrics.jsonl. Of a step that several
// launches computed, the last counts.
[[nodiscard]] double seconds_that_count(const std::string& metrics, int64_t first_step);

// Whether this launch has begun to train, from the text of a run's metrics.jsonl; until then it may be
// refused.
[[nodiscard]] bool has_begun(const std::string& metrics, uint64_t launch_id);

// The newest step that any rank has finished; 0: none.
[[nodiscard]] int64_t last_step(const JobEnd& end);

// One line of launches.jsonl. `unreachable`: the hosts that did not answer after this launch, and why.
[[nodiscard]] nlohmann::json record_of(const JobEnd& end, const Placement& placement,
                                       const std::vector<Host>& hosts, uint64_t launch_id,
                                       int64_t newest_checkpoint);

}  // namespace pesc
