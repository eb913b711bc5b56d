// A communicator that passes everything on to another one, and counts and times its collectives: `pesc bench`
// says from this what travels, and for how long.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace pesc {

// Collectives of one group, kind and size. Of an all-to-all, whose sizes vary, `bytes` is that of a row.
struct CollectiveKind {
  std::string group;      // the communicator's name
  std::string operation;  // "all_gather", ...
  int ranks = 1;
  DType dtype = DType::kF32;
  int64_t bytes = 0;  // all_gather: of a rank's piece; reduce_scatter: of the result; all_reduce: of the data
  auto operator<=>(const CollectiveKind&) const = default;
};
struct CollectiveCount {
  int64_t calls = 0;
  int64_t bytes_sent = 0;  // by this rank, to others
  int64_t timed_calls = 0;
  double seconds = 0;  // of the timed calls, waits for slower ranks among them
};
using CollectiveCounts = std::map<CollectiveKind, CollectiveCount>;

// What a metered communicator and its splits count. The device collectives of groups of several ranks count;
// host collectives do not.
class CollectiveMeter {
 public:
  [[nodiscard]] const CollectiveCounts& counts() const { return counts_; }
  void reset() { counts_.clear(); }

  // Between the two calls every collective is timed: on the CPU by the clock, on a GPU by two timing events on
  // the comm stream. REQUIRES: the phase clock of that stream is stopped. stop_timing waits for the device.
  void start_timing() { timing_ = true; }
  void stop_timing(Stream& stream);

 private:
  friend class MeteredCommunicator;
  CollectiveCounts counts_;
  std::vector<CollectiveKind> on_device_;  // of which there are two timing events each, in this order
  bool timing_ = false;
};

// REQUIRES: `inner` and `meter` outlive it, and all that is split from it.
[[nodiscard]] std::unique_ptr<Communicator> metered_communicator(Communicator& inner, CollectiveMeter& meter);

}  // namespace pesc
