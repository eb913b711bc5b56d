// The clock by which durations and limits are measured.
#pragma once

#include <chrono>

namespace pesc {

// Seconds since an arbitrary moment; steady, so that a change of the date moves nothing.
[[nodiscard]] inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace pesc
