// A group of one rank on any device. Collectives copy within the device's memory; host collectives are those
// of the underlying host communicator.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace pesc {

// REQUIRES: host->size() == 1.
[[nodiscard]] std::unique_ptr<Communicator> solo_communicator(std::unique_ptr<Communicator> host);

}  // namespace pesc
