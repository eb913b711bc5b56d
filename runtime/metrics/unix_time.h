// The date, for records: durations are measured by another clock.
#pragma once

#include <chrono>

namespace pesc {

// Seconds since 1970.
[[nodiscard]] inline double unix_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace pesc
