// The token exchange of one expert-parallel group; the letters and the three phases are in
// token_dispatcher.h.
//
// The plan is made of two host collectives: all ranks learn the [ep x ep] matrix of counts, from which each
// derives the rounds and everybody's part in them; then the local expert numbers of every row travel (k per
// row, -1 where that choice lives elsewhere).
//
// With ep = 1 the received rows are the home rows: recv_experts is the choice itself, pair_token and
// choice_pair stay empty, and there is always one round, whatever the capacity.
#include "parallel/token_dispatcher.h"

#include <algorithm>

#include "ops/core/check.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

void check_round(const DispatchPlan& plan, int round, int ep, const Tensor& received, const char* what) {
  PESC_CHECK(ep > 1, what, ": with ep = 1 nothing is exchanged");
  PESC_CHECK(0 <= round && round < plan.rounds, what, ": round ", round, " of ", plan.rounds);
  const int64_t rows = plan.received(round);
  PESC_CHECK(received.rows == rows, what, ": ", received.rows, " rows for round ", round, ", which has ",
             rows);
}

// Counts of one round, each k times.
std::vector<int64_t> times(std::span<const int64_t> rows, int64_t k) {
  std::vector<int64_t> values(rows.begin(), rows.end());
  for (int64_t& n : values) n *= k;
  return values;
}

}  // namespace

TokenDispatcher::TokenDispatcher(Communicator& ep, int64_t experts, int64_t top_k, int64_t capacity)
    : ep_(&ep),
      experts_(experts),
      top_k_(top_k),
      capacity_(capacity),
      local_experts_(experts / std::max(1, ep.size())) {
  if (experts < 1 || experts % ep.size() != 0) {
    throw UsageError(str_cat("layout: ", experts, " experts cannot be spread evenly over ep = ", ep.size(),
                             " ranks; choose an ep that divides the number of experts"));
  }
  PESC_CHECK(top_k >= 1 && top_k <= experts, "top_k ", top_k, " of ", experts, " experts");
  PESC_CHECK(capacity >= 1, "capacity ", capacity);
}

TokenDispatcher::TokenDispatcher(int64_t experts, int64_t top_k)
    : experts_(experts), top_k_(top_k), capacity_(1), local_experts_(experts) {
  PESC_CHECK(top_k >= 1 && top_k <= experts, "top_k ", top_k, " of ", experts, " experts");
}

DispatchPlan TokenDispatcher::prepare(Stream& stream, const Tensor& topk_indices,
                                      const Tensor& memory) const {
  PESC_CHECK(topk_indices.cols == top_k_ && topk_indices.contiguous(), "topk_indices [", topk_indices.rows,
             ", ", topk_indices.cols, "] with k = ", top_k_);
  const int ep = size();
  const std::span<const int32_t> chosen(topk_indices.i32(), at(topk_indices.size()));
  for (const int32_t e : chosen)
    PESC_CHECK(0 <= e && e < experts_, "the router chose expert ", e, " of ", experts_);

  DispatchPlan plan;
  plan.tokens = topk_indices.rows;
  if (ep == 1) {
    plan.send_rows = plan.recv_rows = plan.round_send = plan.round_recv = {plan.tokens};
    plan.recv_experts.assign(chosen.begin(), chosen.end());
    group_by_expert(local_experts_, top_k_, capacity_, plan);
    return plan;
  }
  const std::vector<int32_t> experts = plan_pairs(chosen, top_k_, ep, local_experts_, plan);

  // Everybody's counts, and a check that the group agrees on the rounds' size.
  std::vector<int64_t> own = plan.send_rows;
  own.push_back(capacity_);
  const std::vector<int64_t> gathered = ep_->host_all_gather(own);
  std::vector<int64_t> counts(at(int64_t{ep} * ep));
  for (int64_t s = 0; s < ep; ++s) {
    PESC_CHECK(gathered[at(s * (ep + 1) + ep)] == capacity_, "rank ", s, " of '", ep_->name(),
               "' has capacity ", gathered[at(s * (ep + 1) + ep)], ", not ", capacity_);
    std::copy_n(gathered.begin() + s * (ep + 1), ep, counts.begin() + s * ep);
  }
  plan_rounds(counts, ep_->rank(), capacity_, plan);
  plan.recv_experts =
      ep_->host_all_to_all_v(experts, times(plan.send_rows, top_k_), times(plan.recv_rows, top_k_));
  group_by_expert(local_experts_, top_k_, capacity_, plan);

  const std::vector<int32_t> indices = plan_indices(top_k_, memory, plan);
  const PhaseScope phase(stream, Phase::kCommunication);
  copy_from_host(stream, indices.data(), memory.col_range(0, static_cast<int64_t>(indices.size())));
  return plan;
}

void TokenDispatcher::dispatch(Stream& stream, const DispatchPlan& plan, int round, const Tensor& rows,
                               const Tensor& out, Arena& scratch) const {
  check_round(plan, round, size(), out, "dispatch");
  PESC_CHECK(rows.rows == plan.tokens && rows.cols == out.cols, "dispatch of [", rows.rows, ", ", rows.cols,
             "] with ", plan.tokens, " tokens");
  const PhaseScope phase(stream, Phase::kCommunication);
  const Arena::Scope scope(scratch);
  const Tensor& token = plan.indices[at(round)].token;
  const Tensor packed = scratch.allocate(token.cols, rows.cols, rows.dtype);
  gather_rows(stream, rows, token, packed);
  ep_->all_to_all_v(stream, packed, plan.sends(round), out, plan.receives(round));
}

void TokenDispatcher::combine(Stream& stream, const DispatchPlan& plan, int round, const Tensor& rows,
                              const Tensor& out, Arena& scratch) const {
  check_round(plan, round, size(), rows, "combine");
  PESC_CHECK(out.rows == plan.tokens && rows.cols == out.cols, "combine into [", out.rows, ", ", out.cols,
             "] with ", plan.tokens, " tokens");
  const PhaseScope phase(stream, Phase::kCommunication);
  const Arena::Scope scope(scratch);
  const Tensor& token = plan.indices[at(round)].token;
  const Tensor packed = scratch.allocate(token.cols, rows.cols, rows.dtype);
  ep_->all_to_all_v(stream, rows, plan.receives(round), packed, plan.sends(round));
  scatter_add_rows(stream, packed, token, out);  // pairs stand in rank order, so tokens add up in it
}

// dispatch_topk_weights and combine_topk_weights move single values by one gather. Its source has a default
// appended: zero, for choices of experts on other ranks; the old values, for choices of another round.
void TokenDispatcher::dispatch_topk_weights(Stream& stream, const DispatchPlan& plan, int round,
                                            const Tensor& values, const Tensor& out, Arena& scratch) const {
  check_round(plan, round, size(), out, "dispatch_topk_weights");
  const int64_t choices = plan.tokens * top_k_;
  PESC_CHECK(values.rows == plan.tokens && values.cols == top_k_ && out.cols == top_k_,
             "dispatch_topk_weights of [", values.rows, ", ", values.cols, "]");
  const PhaseScope phase(stream, Phase::kCommunication);
  const Arena::Scope scope(scratch);
  const RoundIndices& indices = plan.indices[at(round)];
  const Tensor source = scratch.allocate(choices + 1, 1, values.dtype);
  copy(stream, values, source.row_range(0, choices).reshaped(plan.tokens, top_k_));
  fill_zero(stream, source.row_range(choices, choices + 1));
  const Tensor packed = scratch.allocate(indices.token.cols, top_k_, values.dtype);
  gather_rows(stream, source, indices.dispatch_choice, packed.reshaped(packed.size(), 1));
  ep_->all_to_all_v(stream, packed, plan.sends(round), out, plan.receives(round));
}

void TokenDispatcher::combine_topk_weights(Stream& stream, const DispatchPlan& plan, int round,
                                           const Tensor& values, const Tensor& out, Arena& scratch) const {
  check_round(plan, round, size(), values, "combine_topk_weights");
  const int64_t choices = plan.tokens * top_k_;
  PESC_CHECK(out.rows == plan.tokens && out.cols == top_k_ && values.cols == top_k_ && out.contiguous(),
             "combine_topk_weights into [", out.rows, ", ", out.cols, "]");
  const PhaseScope phase(stream, Phase::kCommunication);
  const Arena::Scope scope(scratch);
  const RoundIndices& indices = plan.indices[at(round)];
  const int64_t carried = indices.dispatch_choice.cols;
  const Tensor source = scratch.allocate(carried + choices, 1, values.dtype);
  ep_->all_to_all_v(stream, values, plan.receives(round),
                    source.row_range(0, carried).reshaped(indices.token.cols, top_k_), plan.sends(round));
  copy(stream, out, source.row_range(carried, carried + choices).reshaped(plan.tokens, top_k_));
  gather_rows(stream, source, indices.combine_choice, out.reshaped(choices, 1));
}

int64_t TokenDispatcher::index_count(int ep, int64_t top_k, int64_t tokens, int64_t capacity) {
  return most_indices(ep, top_k, tokens, capacity);
}

int64_t TokenDispatcher::scratch_bytes(int ep, int64_t top_k, int64_t tokens, int64_t cols, DType type) {
  if (ep == 1) return 0;
  const int64_t pairs = tokens * std::min<int64_t>(top_k, ep);
  const int64_t choices = tokens * top_k;
  Arena rows = Arena::planning("rows of the token exchange");
  (void)rows.allocate(pairs, cols, type);
  Arena there = Arena::planning("dispatched topk_weights");
  (void)there.allocate(choices + 1, 1);
  (void)there.allocate(pairs, top_k);
  Arena back = Arena::planning("combined topk_weights");
  (void)back.allocate(pairs * top_k + choices, 1);
  return std::max({rows.used(), there.used(), back.used()});
}

}  // namespace pesc
