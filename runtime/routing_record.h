// The files of recorded routing (a test mode, runtime/router_replay.h), and whose they are.
//
// One file per launch and rank, `routing-LAUNCH-RANK.bin`. Its first line is text and says whose it is:
//
//   pesc routing 1 run 0123...cdef launch 2 rank 0 of 4 top_k 2
//
// Then come records { step u32, layer u32, sample i64, position i32, tokens i32, k i32, 0 i32 }, each
// followed by tokens * k bytes of expert numbers, for consecutive positions of one sample. A record of layer
// kEndOfStep, without tokens, ends the records of a step: records after the last of these belong to a step
// that was not finished, and are not read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pesc {

struct RoutingOwner {
  std::string run;  // 32 hexadecimal digits (runtime/checkpoint/run_identity.h)
  uint64_t launch = 0;
  int rank = 0;
  int ranks = 1;  // of the launch
  int64_t top_k = 1;
};
[[nodiscard]] std::string routing_file_name(const RoutingOwner& owner);
[[nodiscard]] std::string routing_first_line(const RoutingOwner& owner);  // with its end

struct RoutingRecord {
  uint32_t step = 0;
  uint32_t layer = 0;
  int64_t sample = 0;
  int32_t position = 0;
  int32_t tokens = 0;
  int32_t top_k = 0;
  int32_t zero = 0;
};
static_assert(sizeof(RoutingRecord) == 32);
inline constexpr uint32_t kEndOfStep = UINT32_MAX;

struct RoutingFile {
  std::string path;
  RoutingOwner owner;
  size_t records_at = 0;  // bytes
};
// The files of the folder, sorted by launch and rank; none where it is not there. One in which a launch has
// died before its first line was whole is left out. Throws DataError, naming the file, for one that says
// nothing of its run, or has the name of another launch or rank.
[[nodiscard]] std::vector<RoutingFile> routing_files(const std::string& folder);

// Throws UsageError, naming folder and both runs, where the folder holds what another run, or nobody knows
// which, has recorded.
void check_routing_folder(const std::string& folder, const std::string& run);

}  // namespace pesc
