// The plan of the token exchange of one layer and micro-batch: which rows each rank sends to which rank, in
// how many rounds, and the indices by which rows are packed and added. TokenDispatcher::prepare builds it.
// Letters as in parallel/token_dispatcher.h.
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
  std::vector<int32_t> choice;   // [M] row * k + j: the assignment is the row's j-th choice
};

// The device indices of one round, in which P' of the P pairs are sent.
struct RoundIndices {
  Tensor token;  // [1, P'] I32: home token of each row sent. dispatch gathers by it, combine adds up by it
  // For dispatch_topk_weights: the index of each sent value among the T k values at home; T k, the index of
  // an appended zero, for a choice whose expert is on another rank.
  Tensor dispatch_choice;  // [1, P' k] I32
  // For combine_topk_weights: the index of each value at home among the P' k returned values; P' k + its own
  // index, where the old values are appended, for a choice of another round.
  Tensor combine_choice;  // [1, T k] I32
};

// Immutable after prepare: dispatch and combine of the forward, of a recompute and of the backward read it.
struct DispatchPlan {
  int64_t tokens = 0;  // T
  int rounds = 1;
  // Home side, pairs in (destination rank, token) order; on the host.
  std::vector<int32_t> pair_token;   // [P] home token of the pair
  std::vector<int64_t> send_rows;    // [ep] pairs to each rank; sums to P
  std::vector<int32_t> choice_pair;  // [T * k] the pair that carries choice (token, j)
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

// The local steps of TokenDispatcher::prepare, in this order:

// Fills pair_token, send_rows and choice_pair from the choices [T * k] (global expert numbers). Returns the
// local expert numbers of every pair [P * k], -1 where the choice belongs to another rank.
[[nodiscard]] std::vector<int32_t> plan_pairs(std::span<const int32_t> chosen, int64_t top_k, int ep,
                                              int64_t local_experts, DispatchPlan& plan);
// Fills rounds, recv_rows, round_send and round_recv from counts[s * ep + d], the rows from rank s to rank d.
// A rank receives at most `capacity` rows in a round.
void plan_rounds(std::span<const int64_t> counts, int rank, int64_t capacity, DispatchPlan& plan);
// Fills the groups of all rounds from recv_experts.
void group_by_expert(int64_t local_experts, int64_t top_k, int64_t capacity, DispatchPlan& plan);
// Returns the indices of all rounds in sequence: token, dispatch_choice and combine_choice of each.
// plan.indices become views of `memory` [1, n] I32, to which the caller copies the returned values.
[[nodiscard]] std::vector<int32_t> plan_indices(int64_t top_k, const Tensor& memory, DispatchPlan& plan);

// The largest number of values that plan_indices returns when no rank of the group has more than `tokens`
// tokens.
[[nodiscard]] int64_t most_indices(int ep, int64_t top_k, int64_t tokens, int64_t capacity);

}  // namespace pesc
