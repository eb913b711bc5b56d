// What the collectives of a training step send and how long they take, beside the least that must travel and
// beside the library's own collectives of the same sizes: a part of `pesc bench` with several ranks.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>

#include "model/decoder.h"
#include "parallel/metered_communicator.h"
#include "runtime/job.h"

namespace pesc {

// Puts the meter between the job's ranks and their communicators; null with one rank. `world` is that of
// open_job. The result outlives the job. REQUIRES: nothing uses job.ranks yet. Collective.
[[nodiscard]] std::unique_ptr<Communicator> meter_ranks(Job& job, Communicator& world,
                                                        CollectiveMeter& meter);

// What the meter counted in `steps` steps, all of them timed, as bytes and seconds of one step of this rank:
//   collectives    [{group, operation, ranks, dtype, bytes, calls, sent_bytes, seconds, library_seconds}]
//   communication  [{name, sent_bytes, planned_bytes, least_bytes, seconds, library_seconds}], of tensor
//                  parallelism, the exchange, the gradients, and all other
// The seconds are those that the collectives took, waits for slower ranks among them; without a comm stream
// (parallel.overlap_comm) the step waits for all of them. `library_seconds` is what the same calls take one
// after the other with nothing beside them: NCCL's, as it is pinned, on GPUs, MPI's own collectives on the CPU.
// Collective.
[[nodiscard]] nlohmann::json collectives_json(const Job& job, Stream& stream, const CollectiveMeter& meter,
                                              int steps);

// A table of `communication`, as text. `exposed`: the seconds of a step that waits for collectives.
[[nodiscard]] std::string communication_table(const nlohmann::json& collectives, double exposed);

}  // namespace pesc
