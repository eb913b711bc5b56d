// Token exchange between the ranks of an expert-parallel group (design section 3), in three phases:
//   prepare      from the top-k choice, before the FFN runs: counts are exchanged, the send plan is built
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
#include <vector>

#include "ops/core/arena.h"
#include "parallel/communicator.h"

namespace pesc {

// What the ranks of one ep group agreed on for one layer and micro-batch. Immutable once prepared; the
// backward reuses it. All arrays are host memory; device copies, where a backend needs them, belong to the
// ops that read them.
struct ExchangePlan {
  int64_t tokens = 0;  // T
  int rounds = 1;
  // Home side, pairs in (destination rank, token) order.
  std::vector<int32_t> pair_token;  // [P] home token of the pair
  std::vector<int64_t> send_rows;   // [ep] pairs to each rank; sums to P
  std::vector<int32_t> slot_pair;   // [T * k] the pair that carries choice (token, j)
  // Expert side.
  std::vector<int64_t> recv_rows;  // [ep] rows from each rank; sums to R
  std::vector<int32_t>
      recv_experts;  // [R * k] local experts of each received row, in falling-logit order; -1: none
  // For every round: how many of each rank's rows are sent and received in it ([rounds * ep]).
  std::vector<int64_t> round_send;
  std::vector<int64_t> round_recv;
  [[nodiscard]] int64_t received() const;  // R
};

// The received rows [begin, end) of one round, grouped by expert: what ops/adapter.h reads.
struct ExpertGroups {
  std::vector<int64_t> offsets;  // [local experts + 1] into the arrays below
  std::vector<int32_t> row;      // [M] row within the round, rising within an expert
  std::vector<int32_t> slot;     // [M] row * k + j: which of the row's k weight slots
};

class ExpertExchange {
 public:
  // `ep` is the group; `experts` are spread evenly over it. `capacity`: received rows per round.
  ExpertExchange(Communicator& ep, int64_t experts, int64_t top_k, int64_t capacity);

  // Collective over the ep group. `top_experts` [T, k] I32 in host memory, global expert numbers.
  [[nodiscard]] ExchangePlan prepare(const Tensor& top_experts) const;
  [[nodiscard]] ExpertGroups groups(const ExchangePlan& plan, int round) const;

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
  // Scratch bytes that any of the calls above may need for T tokens of c columns of `rows`.
  [[nodiscard]] static int64_t scratch_bytes(int ep, int64_t top_k, int64_t tokens, int64_t cols,
                                             DType rows = DType::kF32);

 private:
  Communicator& ep_;
  int64_t experts_, top_k_, capacity_, local_experts_;
};

}  // namespace pesc
