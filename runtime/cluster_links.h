// The links of a cluster of hosts with several GPUs, and how long NCCL's collectives take over them.
//
// The model is that of NCCL's own tuner for its ring with the Simple protocol, which parallel/nccl_communicator.cc
// pins: a collective takes a latency for each step of the ring, more for a step between hosts, and the bytes that a
// rank sends over the rate of the narrowest link. NCCL makes a ring for each network link, so that the m ranks that
// a group has on a host share the links of m GPUs.
#pragma once

#include <vector>

namespace pesc {

// Bytes a second in one direction that a GPU reaches.
struct ClusterLinks {
  int gpus_per_host = 1;
  double inside = 0;   // to the GPUs of its host
  double between = 0;  // to other hosts
};
// Of a network link's line rate as much is taken to be reached.
inline constexpr double kNetworkShare = 0.9;

// How the ranks of a group lie on the hosts.
struct GroupSpread {
  int ranks = 1;
  int hosts = 1;
  [[nodiscard]] double of_host() const { return static_cast<double>(ranks) / hosts; }
};
// `members`: world ranks; a host has gpus_per_host successive ones.
[[nodiscard]] GroupSpread spread_of(const std::vector<int>& members, int gpus_per_host);

// Bytes a second that each rank of a ring sends.
[[nodiscard]] double ring_rate(const ClusterLinks& links, const GroupSpread& group);
// Seconds that a call takes besides its bytes.
[[nodiscard]] double all_reduce_latency(const GroupSpread& group);
[[nodiscard]] double gather_latency(const GroupSpread& group);  // and of a reduce-scatter
[[nodiscard]] double all_to_all_latency(const GroupSpread& group);

// Seconds of an all-to-all in which a rank sends so many bytes, the same to each other rank.
[[nodiscard]] double all_to_all_seconds(const ClusterLinks& links, const GroupSpread& group, double sent);

// Seconds of an all-reduce of `bytes` in two levels: reduce-scatter inside of each host, all-reduce of the parts
// between hosts, all-gather inside. With one host, or one rank a host, it is a ring.
[[nodiscard]] double two_level_all_reduce_seconds(const ClusterLinks& links, const GroupSpread& group,
                                                  double bytes);

}  // namespace pesc
