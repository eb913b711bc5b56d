// The backward of MoeLayer.
#include "model/moe_layer.h"
#include "model/moe_round.h"
#include "ops/adapter.h"
#include "ops/dropout.h"
#include "ops/reduce.h"
#include "ops/router.h"

namespace pesc {

MoeLayer::GradDispatched MoeLayer::dispatch_grad(const Tensor& dy) const {
  if (exchange_.size() == 1) return GradDispatched(*this, dy);
  Stream& lane = pass_.stream.communication();
  lane.follow(pass_.stream);
  for (size_t c = 0; c < chunks_.size(); ++c) {
    DispatchRound(pass_, exchange_, chunks_, saved_, c, 0).send_gradient(dy);
    pass_.lane.arrived[c].set(lane);
  }
  return GradDispatched(*this, dy);
}

MoeLayer::GradCombining MoeLayer::experts_backward(GradDispatched&& dispatched) const {
  const Tensor dy = consume(std::move(dispatched));
  Stream& s = pass_.stream;
  const PhaseScope phase(s, Phase::kAdapters);
  const MoeParameters& p = parameters_;
  const Workspace& ws = pass_.ws;
  const int64_t n = pass_.batch.slice_real;
  const Tensor delta = ws.delta.row_range(0, pass_.batch.slice);
  const auto backward = [&](const ExpertRows& r, const Tensor& dout, const Tensor& df,
                            const Tensor& dweights) {
    const AdapterForward forward = adapter_args(pass_, p, r, {});
    adapter_backward(s,
                     {forward.groups, r.f, r.weights, p.down, p.up, forward.scale, r.hidden, dout, df,
                      dweights, p.ddown, p.dup},
                     pass_.scratch);
  };
  if (exchange_.size() == 1) {
    const ExpertGroups& groups = saved_.plans[0].groups[0];
    fill_zero(s, delta.row_range(n, delta.rows));
    backward({groups, saved_.dropped.row_range(0, n), saved_.weights.row_range(0, n),
              saved_.hidden.row_range(0, assignments(groups))},
             dy.row_range(0, n), delta.row_range(0, n), ws.dweights.row_range(0, n));
    return GradCombining(*this, dy);
  }
  Stream& lane = s.communication();
  fill_zero(s, delta);
  for_rounds(pass_, exchange_, chunks_, saved_,
             [&](size_t c, const DispatchRound& round, const DispatchRound* next) {
               pass_.lane.arrived[c].hold(s);
               const ExpertRows rows = round.rows();
               if (!round.kept()) adapter_hidden(s, adapter_args(pass_, p, rows, {}), pass_.scratch);
               backward(rows, round.received(ws.received2), round.received(ws.received_out),
                        round.received(ws.received_dweights));
               lane.follow(s);
               round.return_rows(delta);
               round.return_weight_gradients();
               if (next == nullptr) return pass_.lane.combined[c].set(lane);
               next->send_gradient(dy);
               pass_.lane.arrived[c].set(lane);
             });
  return GradCombining(*this, dy);
}

void MoeLayer::input_gradient(size_t c, const Tensor& dy, const Tensor& df) const {
  const PhaseScope phase(pass_.stream, Phase::kAdapters);
  pass_.lane.combined[c].hold(pass_.stream);
  const BatchChunk& chunk = chunks_[c];
  const auto mine = [&chunk](const Tensor& t) { return t.row_range(chunk.rows.begin, chunk.rows.end); };
  dropout_sum(pass_.stream, pass_.over(chunk.batch).slice_dropout(layer_, DropoutSite::kAdapter),
              mine(pass_.ws.delta), mine(dy), df);
}

LowRankTerm MoeLayer::route_backward(FfnDone&& done, const RouterInput& input,
                                     const Tensor& balance_grad) const {
  (void)consume(std::move(done));
  const PhaseScope phase(pass_.stream, Phase::kAdapters);
  const int64_t n = pass_.batch.slice_real;
  const Tensor dlogits = pass_.ws.dlogits.row_range(0, n);
  router_backward(
      pass_.stream,
      {input.x.row_range(0, n), parameters_.router, saved_.probs.row_range(0, n),
       saved_.experts.row_range(0, n), saved_.weights.row_range(0, n), pass_.ws.dweights.row_range(0, n),
       balance_grad, parameters_.drouter, dlogits, input.rstd.col_range(0, n), input.norm},
      pass_.scratch);
  return {dlogits, parameters_.router};
}

}  // namespace pesc
