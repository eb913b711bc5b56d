// What the ranks of an expert-parallel group agree on for the tokens of one layer and micro-batch: who sends
// which rows to whom, in how many rounds, and the indices by which rows are packed and added up again. The
// letters are those of parallel/expert_exchange.h, whose `prepare` makes a plan.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/core/tensor.h"

namespace pesc {

// The rows received in one round, grouped by expert: what ops/adapter.h reads.
struct ExpertGroups {
  std::vector<int64_t> offsets;  // [local experts + 1] into the arrays below
  std::vector<int32_t> row;      // [M] row within the round, rising within an expert
  std::vector<int32_t> slot;     // [M] row * k + j: which of the row's k weight slots
};

// The indices of one round on the device; P' of the P pairs travel in it.
struct RoundIndices {
  Tensor token;  // [1, P'] I32: home token of each row sent. dispatch gathers by it, combine adds up by it
  // dispatch_slots: where each value sent stands among the T k values at home; T k (a zero is appended there)
  // for a choice whose expert is elsewhere.
  Tensor slot_there;  // [1, P' k] I32
  // combine_slots: where each value at home stands among the P' k that came back; P' k + itself (the old
  // values are appended there) for one that another round carries.
  Tensor slot_back;  // [1, T k] I32
};

// Immutable once prepared: dispatch and combine of the forward, of a recompute and of the backward read it.
struct ExchangePlan {
  int64_t tokens = 0;  // T
  int rounds = 1;
  // Home side, pairs in (destination rank, token) order; on the host.
  std::vector<int32_t> pair_token;  // [P] home token of the pair
  std::vector<int64_t> send_rows;   // [ep] pairs to each rank; sums to P
  std::vector<int32_t> slot_pair;   // [T * k] the pair that carries choice (token, j)
  // Expert side; on the host.
  std::vector<int64_t> recv_rows;  // [ep] rows from each rank; sums to R
  // [R * k] local experts of each received row, in falling-logit order; -1: none
  std::vector<int32_t> recv_experts;
  // For every round: how many of each rank's rows are sent and received in it ([rounds * ep]).
  std::vector<int64_t> round_send;
  std::vector<int64_t> round_recv;
  std::vector<ExpertGroups> groups;   // [rounds]
  std::vector<RoundIndices> indices;  // [rounds], on the device; empty with ep = 1

  [[nodiscard]] int ep() const { return static_cast<int>(send_rows.size()); }
  [[nodiscard]] int64_t received() const;           // R
  [[nodiscard]] int64_t received(int round) const;  // rows of one round
  [[nodiscard]] std::span<const int64_t> sends(int round) const;
  [[nodiscard]] std::span<const int64_t> receives(int round) const;
};

// The steps of ExpertExchange::prepare that need no communication. In this order:

// From the group's choices [T * k], global expert numbers: pair_token, send_rows, slot_pair. Returns the
// local expert numbers of every pair [P * k], -1 where the choice is another rank's.
[[nodiscard]] std::vector<int32_t> plan_pairs(std::span<const int32_t> chosen, int64_t top_k, int ep,
                                              int64_t local_experts, ExchangePlan& plan);
// From counts[s * ep + d], the rows from rank s to rank d: rounds, recv_rows, round_send, round_recv. A rank
// receives at most `capacity` rows in a round.
void plan_rounds(std::span<const int64_t> counts, int rank, int64_t capacity, ExchangePlan& plan);
// From recv_experts: the groups of all rounds.
void group_by_expert(int64_t local_experts, int64_t top_k, int64_t capacity, ExchangePlan& plan);
// The indices of all rounds, one after the other: token, slot_there and slot_back of each. `plan.indices`
// become views of `memory` [1, n] I32, which the caller fills with what is returned.
[[nodiscard]] std::vector<int32_t> plan_indices(int64_t top_k, const Tensor& memory, ExchangePlan& plan);

// The most values that plan_indices returns where no rank of the group has more than `tokens` tokens.
[[nodiscard]] int64_t most_indices(int ep, int64_t top_k, int64_t tokens, int64_t capacity);

}  // namespace pesc
