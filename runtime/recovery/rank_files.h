// The files that a rank writes to the run directory for the supervisor: a heartbeat while it runs, and the
// cause of its death.
//
//   heartbeats/rank-R        one line of fixed length, rewritten in place at every step and section
//   deaths/launch-G-rank-R   JSON, written once, right before the rank ends with an error
//
// A heartbeat is progress, not time: `count` rises by one at every step or section; the reader measures the
// time.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/recovery/fault.h"

namespace pesc {

struct Heartbeat {
  uint64_t launch_id = 0;  // of the launch
  int rank = 0;
  std::string host;
  int pid = 0;
  uint64_t count = 0;
  Section section = Section::kSetup;
  int64_t step = 0;  // done
  double limit = 0;  // seconds that this section may take
};

struct Death {
  uint64_t launch_id = 0;
  int rank = 0;
  std::string host;
  int pid = 0;
  Section section = Section::kSetup;
  int64_t step = 0;
  int exit_code = 0;
  std::string error;
};

[[nodiscard]] std::string host_name();

// The heartbeat of one rank. Plain pwrite of one small line: nothing to be lost, nothing synced, and unlike a
// mapped page a full disk does not kill the writer. `write` never throws; what cannot be written is not seen.
class HeartbeatFile {
 public:
  // Makes the file with room for the line. Throws IoError where it cannot: the supervisor would take a rank
  // that nobody sees for one that hangs.
  HeartbeatFile(const std::string& run_dir, int rank);
  ~HeartbeatFile();
  HeartbeatFile(const HeartbeatFile&) = delete;
  HeartbeatFile& operator=(const HeartbeatFile&) = delete;
  void write(const Heartbeat& h) noexcept;

 private:
  int fd_ = -1;
};

// Those of launch `launch_id`, by rank. Never throws.
[[nodiscard]] std::vector<Heartbeat> read_heartbeats(const std::string& run_dir, int ranks,
                                                     uint64_t launch_id);

void write_death(const std::string& run_dir, const Death& d) noexcept;
[[nodiscard]] std::vector<Death> read_deaths(const std::string& run_dir, int ranks, uint64_t launch_id);

}  // namespace pesc
