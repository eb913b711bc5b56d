// The backward of MoeLayer.
#include "model/moe_layer.h"
#include "model/moe_round.h"
#include "ops/adapter.h"
#include "ops/dropout.h"
#include "ops/reduce.h"
#include "ops/router.h"

namespace pesc {

MoeLayer::GradDispatched MoeLayer::dispatch_grad(const Tensor& dy) const {
  if (dispatcher_.size() == 1) return GradDispatched(*this, dy);
  Stream& comm_stream = ctx_.stream.comm_stream();
  comm_stream.wait_stream(ctx_.stream);
  for (size_t c = 0; c < chunks_.size(); ++c) {
    DispatchRound(ctx_, dispatcher_, chunks_, saved_, c, 0).dispatch_grad(dy);
    ctx_.comm.arrived[c].record(comm_stream);
  }
  return GradDispatched(*this, dy);
}

MoeLayer::GradCombining MoeLayer::experts_backward(GradDispatched&& dispatched) const {
  const Tensor dy = consume(std::move(dispatched));
  Stream& s = ctx_.stream;
  const PhaseScope phase(s, Phase::kAdapters);
  const MoeParameters& p = parameters_;
  const Workspace& ws = ctx_.ws;
  const int64_t n = ctx_.batch.slice_real;
  const Tensor adapter_dinput = ws.adapter_dinput.row_range(0, ctx_.batch.slice);
  const auto backward = [&](const ExpertRows& r, const Tensor& dout, const Tensor& df,
                            const Tensor& dweights) {
    const AdapterForward forward = adapter_args(ctx_, p, r, {});
    adapter_backward(s,
                     {forward.groups, r.f, r.topk_weights, p.down, p.up, forward.scale, r.pre_act, dout, df,
                      dweights, p.ddown, p.dup},
                     ctx_.scratch);
  };
  if (dispatcher_.size() == 1) {
    const ExpertGroups& groups = saved_.plans[0].groups[0];
    fill_zero(s, adapter_dinput.row_range(n, adapter_dinput.rows));
    backward({groups, saved_.dropout_out.row_range(0, n), saved_.topk_weights.row_range(0, n),
              saved_.adapter_pre_act.row_range(0, assignments(groups))},
             dy.row_range(0, n), adapter_dinput.row_range(0, n), ws.dtopk_weights.row_range(0, n));
    return GradCombining(*this, dy);
  }
  Stream& comm_stream = s.comm_stream();
  fill_zero(s, adapter_dinput);
  for_rounds(ctx_, dispatcher_, chunks_, saved_,
             [&](size_t c, const DispatchRound& round, const DispatchRound* next) {
               ctx_.comm.arrived[c].wait(s);
               const ExpertRows rows = round.rows();
               if (!round.kept()) adapter_pre_act(s, adapter_args(ctx_, p, rows, {}), ctx_.scratch);
               backward(rows, round.received_rows(ws.recv_grad), round.received_rows(ws.adapter_out),
                        round.received_rows(ws.recv_dtopk_weights));
               comm_stream.wait_stream(s);
               round.combine(adapter_dinput);
               round.combine_topk_weight_grads();
               if (next == nullptr) return ctx_.comm.combined[c].record(comm_stream);
               next->dispatch_grad(dy);
               ctx_.comm.arrived[c].record(comm_stream);
             });
  return GradCombining(*this, dy);
}

void MoeLayer::input_gradient(size_t c, const Tensor& dy, const Tensor& df) const {
  const PhaseScope phase(ctx_.stream, Phase::kAdapters);
  ctx_.comm.combined[c].wait(ctx_.stream);
  const BatchChunk& chunk = chunks_[c];
  const auto mine = [&chunk](const Tensor& t) { return t.row_range(chunk.rows.begin, chunk.rows.end); };
  dropout_sum(ctx_.stream, ctx_.over(chunk.batch).slice_dropout(layer_, DropoutSite::kAdapter),
              mine(ctx_.ws.adapter_dinput), mine(dy), df);
}

LowRankTerm MoeLayer::route_backward(FfnDone&& done, const RouterInput& input,
                                     const Tensor& aux_loss_grad) const {
  (void)consume(std::move(done));
  const PhaseScope phase(ctx_.stream, Phase::kAdapters);
  const int64_t n = ctx_.batch.slice_real;
  const Tensor dlogits = ctx_.ws.dlogits.row_range(0, n);
  router_backward(ctx_.stream,
                  {input.x.row_range(0, n), parameters_.router, saved_.probs.row_range(0, n),
                   saved_.topk_indices.row_range(0, n), saved_.topk_weights.row_range(0, n),
                   ctx_.ws.dtopk_weights.row_range(0, n), aux_loss_grad, parameters_.drouter, dlogits,
                   input.rstd.col_range(0, n), input.norm},
                  ctx_.scratch);
  return {dlogits, parameters_.router};
}

}  // namespace pesc
