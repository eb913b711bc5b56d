// The forward of MoeLayer; the backward is in moe_layer_backward.cc.
#include "model/moe_layer.h"

#include <algorithm>
#include <vector>

#include "model/moe_round.h"
#include "ops/dropout.h"
#include "ops/reduce.h"
#include "ops/router.h"

namespace pesc {
MoeLayer::MoeLayer(const ForwardContext& ctx, int64_t layer, const MoeParameters& parameters,
                   const TokenDispatcher& dispatcher, std::span<const BatchChunk> chunks, MoeSaved& saved)
    : ctx_(ctx),
      layer_(layer),
      parameters_(parameters),
      dispatcher_(dispatcher),
      chunks_(chunks),
      saved_(saved) {}

MoeLayer::Routed MoeLayer::route(const Tensor& x, const Tensor& stats, RouterReplay* router_replay) const {
  Stream& s = ctx_.stream;
  const PhaseScope phase(s, Phase::kAdapters);
  const int64_t n = ctx_.batch.slice_real;
  const Tensor experts = saved_.topk_indices.row_range(0, n);
  Routing routing = Routing::kTopK;
  std::vector<int32_t> recorded(static_cast<size_t>(n * ctx_.pesc.moe.num_experts_per_tok));
  if (router_replay != nullptr && router_replay->replay(ctx_.batch, layer_, recorded)) {
    routing = Routing::kReplay;
    copy_from_host(s, recorded.data(), experts);
  }
  router_forward(s,
                 {x.row_range(0, n), parameters_.router, saved_.probs.row_range(0, n), experts,
                  saved_.topk_weights.row_range(0, n), stats, routing},
                 ctx_.scratch);
  start_host_copy(s, experts);
  ctx_.comm.routed.record(s);
  return Routed(*this);
}

MoeLayer::Planned MoeLayer::keep_plan() const {
  ctx_.comm.routed.record(ctx_.stream);
  return Planned(*this);
}

void MoeLayer::add_residual(size_t c, const Tensor& x, const Tensor& y) const {
  const PhaseScope phase(ctx_.stream, Phase::kAdapters);
  const BatchChunk& chunk = chunks_[c];
  const auto mine = [&chunk](const Tensor& t) { return t.row_range(chunk.rows.begin, chunk.rows.end); };
  dropout_residual(ctx_.stream, ctx_.over(chunk.batch).slice_dropout(layer_, DropoutSite::kAdapter), mine(x),
                   mine(saved_.f), mine(y), mine(saved_.dropout_out));
  ctx_.comm.ready[c].record(ctx_.stream);
}

MoeLayer::FfnOutput<MoeLayer::Planned> MoeLayer::mask(Planned&& planned, const Tensor& x,
                                                      const Tensor& y) const {
  (void)consume(std::move(planned));
  for (size_t c = 0; c < chunks_.size(); ++c) add_residual(c, x, y);
  return FfnOutput<Planned>(*this, y);
}

MoeLayer::FfnOutput<MoeLayer::Planned> MoeLayer::prepare(FfnOutput<Routed>&& output,
                                                         RouterReplay* router_replay) const {
  const Tensor y = consume(std::move(output));
  const int64_t n = ctx_.batch.slice_real;
  const int64_t k = ctx_.pesc.moe.num_experts_per_tok;
  saved_.topk_indices_host.resize(static_cast<size_t>(n * k));
  finish_host_copy(ctx_.stream, saved_.topk_indices.row_range(0, n), saved_.topk_indices_host.data());
  if (router_replay != nullptr) router_replay->record(ctx_.batch, layer_, saved_.topk_indices_host);
  for (size_t c = 0; c < chunks_.size(); ++c) {
    int32_t* chosen = saved_.topk_indices_host.data() + std::min(chunks_[c].rows.begin, n) * k;
    const auto row = static_cast<int64_t>(c);
    saved_.plans[c] =
        dispatcher_.prepare(ctx_.stream.comm_stream(), tensor_of(chosen, chunks_[c].batch.slice_real, k),
                            saved_.indices.row_range(row, row + 1));
  }
  return FfnOutput<Planned>(*this, y);
}

MoeLayer::Dispatched MoeLayer::dispatch(FfnOutput<Planned>&& output) const {
  const Tensor y = consume(std::move(output));
  if (dispatcher_.size() == 1) return Dispatched(*this, y);
  Stream& comm_stream = ctx_.stream.comm_stream();
  const auto first = [&](size_t c) { return DispatchRound(ctx_, dispatcher_, chunks_, saved_, c, 0); };
  ctx_.comm.routed.wait(comm_stream);
  for (size_t c = 0; c < chunks_.size(); ++c) first(c).dispatch_topk_weights();
  for (size_t c = 0; c < chunks_.size(); ++c) {
    ctx_.comm.ready[c].wait(comm_stream);
    first(c).dispatch_tokens();
    ctx_.comm.arrived[c].record(comm_stream);
  }
  return Dispatched(*this, y);
}

MoeLayer::Combining MoeLayer::experts(Dispatched&& dispatched) const {
  const Tensor y = consume(std::move(dispatched));
  Stream& s = ctx_.stream;
  const PhaseScope phase(s, Phase::kAdapters);
  if (dispatcher_.size() == 1) {
    const int64_t n = ctx_.batch.slice_real;
    const ExpertGroups& groups = saved_.plans[0].groups[0];
    const ExpertRows rows{groups, saved_.dropout_out.row_range(0, n), saved_.topk_weights.row_range(0, n),
                          saved_.adapter_pre_act.row_range(0, assignments(groups))};
    adapter_forward(s, adapter_args(ctx_, parameters_, rows, y.row_range(0, n)), ctx_.scratch);
    return Combining(*this);
  }
  Stream& comm_stream = s.comm_stream();
  for_rounds(ctx_, dispatcher_, chunks_, saved_,
             [&](size_t c, const DispatchRound& round, const DispatchRound* next) {
               ctx_.comm.arrived[c].wait(s);
               const Tensor out = round.received_rows(ctx_.ws.adapter_out);
               fill_zero(s, out);
               adapter_forward(s, adapter_args(ctx_, parameters_, round.rows(), out), ctx_.scratch);
               comm_stream.wait_stream(s);
               round.combine(y);
               if (next == nullptr) return;
               next->dispatch_topk_weights();
               next->dispatch_tokens();
               ctx_.comm.arrived[c].record(comm_stream);
             });
  return Combining(*this);
}

void MoeLayer::combine(Combining&& combining) const {
  (void)consume(std::move(combining));
  if (dispatcher_.size() > 1) ctx_.stream.wait_stream(ctx_.stream.comm_stream());
}

}  // namespace pesc
