// One round of the token exchange of one chunk, for MoeLayer: which rows are its at home, and where they
// stand on the rank that holds their experts.
//
// What arrives in a plan's only round is kept for the backward, in MoeSaved. The rows of several rounds are
// not kept: each round takes the workspace after the one before, and the backward sends them again.
#pragma once

#include <span>

#include "model/forward_context.h"
#include "model/parameters.h"
#include "ops/adapter.h"
#include "parallel/token_dispatcher.h"

namespace pesc {

// The rows of one round on the rank that holds their experts.
struct ExpertRows {
  const ExpertGroups& groups;
  Tensor f, topk_weights, pre_act;
};

// What the adapters read of the rows, and `out`, which they write.
[[nodiscard]] AdapterForward adapter_args(const ForwardContext& ctx, const MoeParameters& parameters,
                                          const ExpertRows& rows, const Tensor& out);

[[nodiscard]] inline int64_t assignments(const ExpertGroups& groups) {
  return groups.offsets.empty() ? 0 : groups.offsets.back();
}

// All transfers are enqueued on the comm stream, in the same order on all ranks of the expert group.
class DispatchRound {
 public:
  DispatchRound(const ForwardContext& ctx, const TokenDispatcher& dispatcher,
                std::span<const BatchChunk> chunks, const MoeSaved& saved, size_t c, int round);

  [[nodiscard]] bool kept() const { return plan_.rounds == 1; }
  // This round's rows of a buffer [C, any] for received rows.
  [[nodiscard]] Tensor received_rows(const Tensor& buffer) const;
  [[nodiscard]] ExpertRows rows() const;

  void dispatch_tokens() const;
  void dispatch_topk_weights() const;
  // And, where they were not kept, the rows and weights before.
  void dispatch_grad(const Tensor& dy) const;
  // What the adapters wrote to ws.adapter_out is added to `to` [S, H] at home.
  void combine(const Tensor& to) const;
  void combine_topk_weight_grads() const;

 private:
  [[nodiscard]] Stream& comm_stream() const { return ctx_.stream.comm_stream(); }
  [[nodiscard]] Tensor home(const Tensor& slice) const { return slice.row_range(begin_, begin_ + tokens_); }
  [[nodiscard]] Tensor f() const { return received_rows(kept() ? saved_.recv_tokens : ctx_.ws.recv_tokens); }
  [[nodiscard]] Tensor weights() const {
    return received_rows(kept() ? saved_.recv_topk_weights : ctx_.ws.recv_topk_weights);
  }
  void dispatch(const Tensor& slice, const Tensor& out) const;

  const ForwardContext& ctx_;
  const TokenDispatcher& dispatcher_;
  const MoeSaved& saved_;
  const DispatchPlan& plan_;
  int64_t begin_, tokens_;                   // at home
  int64_t first_, first_assignment_, rows_;  // on the expert rank
  int round_;
};

// Calls work(c, round, next) for all rounds of all chunks, in the order of all ranks; `next` is the round
// that takes the same memory afterwards, or null.
template <class Work>
void for_rounds(const ForwardContext& ctx, const TokenDispatcher& dispatcher,
                std::span<const BatchChunk> chunks, const MoeSaved& saved, Work&& work) {
  for (size_t c = 0; c < chunks.size(); ++c) {
    const int rounds = saved.plans[c].rounds;
    for (int r = 0; r < rounds; ++r) {
      const DispatchRound round(ctx, dispatcher, chunks, saved, c, r);
      if (r + 1 == rounds) {
        work(c, round, static_cast<const DispatchRound*>(nullptr));
      } else {
        const DispatchRound next(ctx, dispatcher, chunks, saved, c, r + 1);
        work(c, round, &next);
      }
    }
  }
}

}  // namespace pesc
