// Token exchange between the ranks of an expert-parallel group (parallel/README.md), in three phases:
//   prepare    from the top-k choice, while the FFN runs: exchanges counts, builds the plan, uploads its
//              indices
//   dispatch   sends rows to the ranks that hold their experts, once per (token, rank)
//   combine    returns one row per (token, rank); the home rank adds them per token in rank order
//
// Letters: T tokens at home (real ones only, no padding), k choices per token, P (token, rank) pairs sent
// from home, R rows received, M assignments (row, expert) of the received rows, H hidden. Received rows are
// in (source rank, token) order. A rank may have no tokens, and may receive none. A rank receives at most
// `capacity` rows in a round; what exceeds it is sent in further rounds, so that no token is dropped. All
// ranks of the group have the same number of rounds. With ep = 1 nothing is sent or copied.
#pragma once

#include <cstdint>

#include "ops/core/arena.h"
#include "parallel/communicator.h"
#include "parallel/dispatch_plan.h"

namespace pesc {

class TokenDispatcher {
 public:
  // `ep` is the group, over which `experts` are divided evenly. `capacity`: received rows per round. Throws
  // UsageError when the group's size does not divide `experts`.
  TokenDispatcher(Communicator& ep, int64_t experts, int64_t top_k, int64_t capacity);
  // Of a rank that computes all experts itself: as with ep = 1, nothing is exchanged.
  TokenDispatcher(int64_t experts, int64_t top_k);

  // Builds the plan. Collective over the ep group; waits for the host collectives. `topk_indices` [T, k] I32
  // is in host memory, with global expert numbers. `memory` [1, n] I32, n >= index_count, belongs to the plan
  // while it is used; its indices are uploaded on `stream`. REQUIRES: dispatch and combine get the same
  // stream.
  [[nodiscard]] DispatchPlan prepare(Stream& stream, const Tensor& topk_indices, const Tensor& memory) const;

  // rows [T, c] at home -> out [R_round, c] written on the expert ranks. Collective. `scratch` holds the
  // packed rows.
  void dispatch(Stream& stream, const DispatchPlan& plan, int round, const Tensor& rows, const Tensor& out,
                Arena& scratch) const;
  // Per-choice values [T, k] at home -> out [R_round, k] written on the expert ranks: a row's values for
  // recv_experts, 0 where recv_experts is -1. Collective.
  void dispatch_topk_weights(Stream& stream, const DispatchPlan& plan, int round, const Tensor& values,
                             const Tensor& out, Arena& scratch) const;
  // The conjugate of dispatch: rows [R_round, c] -> at home out [T, c] += the rows of each token, in rank
  // order. Collective.
  void combine(Stream& stream, const DispatchPlan& plan, int round, const Tensor& rows, const Tensor& out,
               Arena& scratch) const;
  // The conjugate of dispatch_topk_weights: values [R_round, k] -> at home out [T, k], written for the
  // choices of this round. Collective.
  void combine_topk_weights(Stream& stream, const DispatchPlan& plan, int round, const Tensor& values,
                            const Tensor& out, Arena& scratch) const;

  [[nodiscard]] int64_t capacity() const { return capacity_; }
  [[nodiscard]] int64_t local_experts() const { return local_experts_; }
  [[nodiscard]] int size() const { return ep_ == nullptr ? 1 : ep_->size(); }
  // The size of a plan's `memory` when no rank of the group has more than `tokens` tokens.
  [[nodiscard]] static int64_t index_count(int ep, int64_t top_k, int64_t tokens, int64_t capacity);
  // Bytes that dispatch, combine and their per-choice forms may take from `scratch` for T tokens of c
  // columns.
  [[nodiscard]] static int64_t scratch_bytes(int ep, int64_t top_k, int64_t tokens, int64_t cols,
                                             DType rows = DType::kF32);

 private:
  Communicator* ep_ = nullptr;  // null without a group
  int64_t experts_, top_k_, capacity_, local_experts_;
};

}  // namespace pesc
