#include "model/moe_round.h"

#include <algorithm>

namespace pesc {

AdapterForward adapter_args(const ForwardContext& ctx, const MoeParameters& parameters,
                            const ExpertRows& rows, const Tensor& out) {
  return {{rows.groups.offsets, rows.groups.row, rows.groups.choice},
          rows.f,
          rows.topk_weights,
          parameters.down,
          parameters.up,
          static_cast<float>(ctx.pesc.moe.adapter_scaling),
          rows.pre_act,
          out};
}

DispatchRound::DispatchRound(const ForwardContext& ctx, const TokenDispatcher& dispatcher,
                             std::span<const BatchChunk> chunks, const MoeSaved& saved, size_t c, int round)
    : ctx_(ctx),
      dispatcher_(dispatcher),
      saved_(saved),
      plan_(saved.plans[c]),
      begin_(chunks[c].rows.begin),
      tokens_(chunks[c].batch.slice_real),
      first_(static_cast<int64_t>(c) * dispatcher.capacity()),
      rows_(plan_.received(round)),
      round_(round) {
  const int64_t most =
      dispatcher.capacity() * std::min(ctx.pesc.moe.num_experts_per_tok, dispatcher.local_experts());
  first_assignment_ = static_cast<int64_t>(c) * most;
}

Tensor DispatchRound::received_rows(const Tensor& buffer) const {
  return buffer.row_range(first_, first_ + rows_);
}

ExpertRows DispatchRound::rows() const {
  const ExpertGroups& groups = plan_.groups[static_cast<size_t>(round_)];
  const Tensor& pre_act = kept() ? saved_.adapter_pre_act : ctx_.ws.adapter_pre_act;
  return {groups, f(), weights(),
          pre_act.row_range(first_assignment_, first_assignment_ + assignments(groups))};
}

void DispatchRound::dispatch_tokens() const {
  dispatch(saved_.dropout_out, f());
}

void DispatchRound::dispatch_topk_weights() const {
  dispatcher_.dispatch_topk_weights(comm_stream(), plan_, round_, home(saved_.topk_weights), weights(),
                                    ctx_.comm.scratch);
}

void DispatchRound::dispatch_grad(const Tensor& dy) const {
  if (!kept()) {
    dispatch_tokens();
    dispatch_topk_weights();
  }
  dispatch(dy, received_rows(ctx_.ws.recv_grad));
}

void DispatchRound::combine(const Tensor& to) const {
  dispatcher_.combine(comm_stream(), plan_, round_, received_rows(ctx_.ws.adapter_out), home(to),
                      ctx_.comm.scratch);
}

void DispatchRound::combine_topk_weight_grads() const {
  dispatcher_.combine_topk_weights(comm_stream(), plan_, round_, received_rows(ctx_.ws.recv_dtopk_weights),
                                   home(ctx_.ws.dtopk_weights), ctx_.comm.scratch);
}

void DispatchRound::dispatch(const Tensor& slice, const Tensor& out) const {
  dispatcher_.dispatch(comm_stream(), plan_, round_, home(slice), out, ctx_.comm.scratch);
}

}  // namespace pesc
