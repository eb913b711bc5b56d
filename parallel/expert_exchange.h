// Token exchange between the ranks of an expert-parallel group (design section 3), in three phases:
//   prepare      from the top-k choice, while the FFN runs: counts are exchanged, the plan is built, its
//   indices
//                go to the device
//   dispatch     rows travel to the ranks that hold their experts, once per (token, rank)
//   combine      one row per (token, rank) comes back; home adds them up per token in rank order
//
// Letters: T tokens at home (real ones only, no padding), k choices per token, P (token, rank) pairs sent
// from home, R rows received, M assignments (row, expert) of the received rows, H hidden. Received rows stand
// in (source rank, token) order. Zero tokens, at home or received, are ordinary. At most `capacity` rows are
// received at a time; more go in further rounds, the same number on all ranks of the group, agreed from the
// counts. With ep = 1 nothing is sent and no plan rows are copied.
#pragma once

#include <cstdint>

#include "ops/core/arena.h"
#include "parallel/communicator.h"
#include "parallel/exchange_plan.h"

namespace pesc {

class ExpertExchange {
 public:
  // `ep` is the group; `experts` are spread evenly over it. `capacity`: received rows per round.
  ExpertExchange(Communicator& ep, int64_t experts, int64_t top_k, int64_t capacity);

  // Collective over the ep group. `top_experts` [T, k] I32 in host memory, global expert numbers. `memory`
  // [1, n] I32, n >= index_count, is the plan's for as long as it is used. Its indices are written on
  // `stream`, once: dispatch and combine, which read them, are given the same stream.
  [[nodiscard]] ExchangePlan prepare(Stream& stream, const Tensor& top_experts, const Tensor& memory) const;

  // rows [T, c] at home -> out [R_round, c] on the expert ranks. Collective. `scratch` holds the packed rows.
  void dispatch(Stream& stream, const ExchangePlan& plan, int round, const Tensor& rows, const Tensor& out,
                Arena& scratch) const;
  // Per-choice values at home [T, k] -> out [R_round, k] on the expert ranks: a row's weights for
  // recv_experts, 0 where there is none. Collective.
  void dispatch_slots(Stream& stream, const ExchangePlan& plan, int round, const Tensor& values,
                      const Tensor& out, Arena& scratch) const;
  // The conjugates. rows [R_round, c] -> home: out [T, c] += the rows of each token, in rank order.
  // Collective.
  void combine(Stream& stream, const ExchangePlan& plan, int round, const Tensor& rows, const Tensor& out,
               Arena& scratch) const;
  // values [R_round, k] -> home: out [T, k], written for the choices carried in this round. Collective.
  void combine_slots(Stream& stream, const ExchangePlan& plan, int round, const Tensor& values,
                     const Tensor& out, Arena& scratch) const;

  [[nodiscard]] int64_t capacity() const { return capacity_; }
  [[nodiscard]] int64_t local_experts() const { return local_experts_; }
  [[nodiscard]] int size() const { return ep_.size(); }
  // Values of the `memory` of a plan, where no rank of the group has more than `tokens` tokens.
  [[nodiscard]] static int64_t index_count(int ep, int64_t top_k, int64_t tokens, int64_t capacity);
  // Scratch bytes that dispatch, combine and their slot calls may need for T tokens of c columns of `rows`.
  [[nodiscard]] static int64_t scratch_bytes(int ep, int64_t top_k, int64_t tokens, int64_t cols,
                                             DType rows = DType::kF32);

 private:
  Communicator& ep_;
  int64_t experts_, top_k_, capacity_, local_experts_;
};

}  // namespace pesc
