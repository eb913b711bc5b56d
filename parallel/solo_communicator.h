// A group of one rank on any device: data moves within the device's memory. Host collectives are those of the
// host communicator that it stands on.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace pesc {

// `host` must be a group of one.
[[nodiscard]] std::unique_ptr<Communicator> solo_communicator(std::unique_ptr<Communicator> host);

}  // namespace pesc
