// Asking a library, a driver or a file system that may hang or crash: in a child process, with a time limit.
#pragma once

#include <chrono>
#include <functional>
#include <string>

namespace pesc {

struct ProbeResult {
  std::string text;     // what the function returned
  std::string trouble;  // why there is no answer; empty: there is one
  double seconds = 0;   // that it took
};

// Calls `ask` in a child process. An exception, a signal, an exit and the end of the limit are `trouble`; then
// the child and what it has started are killed. What the child prints is dropped, but for the beginning of
// its error output, which a trouble without words of its own quotes.
// REQUIRES: this process has not started MPI, CUDA or threads that hold locks.
[[nodiscard]] ProbeResult probe(const std::function<std::string()>& ask, std::chrono::milliseconds limit);

}  // namespace pesc
