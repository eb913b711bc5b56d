#include "model/moe_round.h"

#include <algorithm>

namespace pesc {

AdapterForward adapter_args(const Pass& pass, const MoeParameters& parameters, const ExpertRows& rows,
                            const Tensor& out) {
  return {{rows.groups.offsets, rows.groups.row, rows.groups.slot},
          rows.f,
          rows.weights,
          parameters.down,
          parameters.up,
          static_cast<float>(pass.pesc.moe.adapter_scaling),
          rows.hidden,
          out};
}

DispatchRound::DispatchRound(const Pass& pass, const ExpertExchange& exchange,
                             std::span<const BatchChunk> chunks, const MoeSaved& saved, size_t c, int round)
    : pass_(pass),
      exchange_(exchange),
      saved_(saved),
      plan_(saved.plans[c]),
      begin_(chunks[c].rows.begin),
      tokens_(chunks[c].batch.slice_real),
      first_(static_cast<int64_t>(c) * exchange.capacity()),
      rows_(plan_.received(round)),
      round_(round) {
  const int64_t most =
      exchange.capacity() * std::min(pass.pesc.moe.num_experts_per_tok, exchange.local_experts());
  first_assignment_ = static_cast<int64_t>(c) * most;
}

Tensor DispatchRound::received(const Tensor& buffer) const {
  return buffer.row_range(first_, first_ + rows_);
}

ExpertRows DispatchRound::rows() const {
  const ExpertGroups& groups = plan_.groups[static_cast<size_t>(round_)];
  const Tensor& hidden = kept() ? saved_.hidden : pass_.ws.hidden;
  return {groups, f(), weights(),
          hidden.row_range(first_assignment_, first_assignment_ + assignments(groups))};
}

void DispatchRound::send_rows() const {
  dispatch(saved_.dropped, f());
}

void DispatchRound::send_weights() const {
  exchange_.dispatch_slots(lane(), plan_, round_, home(saved_.weights), weights(), pass_.lane.scratch);
}

void DispatchRound::send_gradient(const Tensor& dy) const {
  if (!kept()) {
    send_rows();
    send_weights();
  }
  dispatch(dy, received(pass_.ws.received2));
}

void DispatchRound::return_rows(const Tensor& to) const {
  exchange_.combine(lane(), plan_, round_, received(pass_.ws.received_out), home(to), pass_.lane.scratch);
}

void DispatchRound::return_weight_gradients() const {
  exchange_.combine_slots(lane(), plan_, round_, received(pass_.ws.received_dweights),
                          home(pass_.ws.dweights), pass_.lane.scratch);
}

void DispatchRound::dispatch(const Tensor& slice, const Tensor& out) const {
  exchange_.dispatch(lane(), plan_, round_, home(slice), out, pass_.lane.scratch);
}

}  // namespace pesc
