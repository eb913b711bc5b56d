// The forward of MoeLayer; the backward is in moe_layer_backward.cc.
#include "model/moe_layer.h"

#include <algorithm>
#include <vector>

#include "model/moe_round.h"
#include "ops/dropout.h"
#include "ops/reduce.h"
#include "ops/router.h"

namespace pesc {
MoeLayer::MoeLayer(const Pass& pass, int64_t layer, const MoeParameters& parameters,
                   const ExpertExchange& exchange, std::span<const BatchChunk> chunks, MoeSaved& saved)
    : pass_(pass),
      layer_(layer),
      parameters_(parameters),
      exchange_(exchange),
      chunks_(chunks),
      saved_(saved) {}

MoeLayer::Routed MoeLayer::route(const Tensor& x, const Tensor& stats, RoutingTape* tape) const {
  Stream& s = pass_.stream;
  const PhaseScope phase(s, Phase::kAdapters);
  const int64_t n = pass_.batch.slice_real;
  const Tensor experts = saved_.experts.row_range(0, n);
  Routing routing = Routing::kTopK;
  std::vector<int32_t> recorded(static_cast<size_t>(n * pass_.pesc.moe.num_experts_per_tok));
  if (tape != nullptr && tape->replay(pass_.batch, layer_, recorded)) {
    routing = Routing::kReplay;
    copy_from_host(s, recorded.data(), experts);
  }
  router_forward(s,
                 {x.row_range(0, n), parameters_.router, saved_.probs.row_range(0, n), experts,
                  saved_.weights.row_range(0, n), stats, routing},
                 pass_.scratch);
  start_host_copy(s, experts);
  pass_.lane.routed.set(s);
  return Routed(*this);
}

MoeLayer::Planned MoeLayer::keep_plan() const {
  pass_.lane.routed.set(pass_.stream);
  return Planned(*this);
}

void MoeLayer::add_residual(size_t c, const Tensor& x, const Tensor& y) const {
  const PhaseScope phase(pass_.stream, Phase::kAdapters);
  const BatchChunk& chunk = chunks_[c];
  const auto mine = [&chunk](const Tensor& t) { return t.row_range(chunk.rows.begin, chunk.rows.end); };
  dropout_residual(pass_.stream, pass_.over(chunk.batch).slice_dropout(layer_, DropoutSite::kAdapter),
                   mine(x), mine(saved_.f), mine(y), mine(saved_.dropped));
  pass_.lane.ready[c].set(pass_.stream);
}

MoeLayer::FfnOutput<MoeLayer::Planned> MoeLayer::mask(Planned&& planned, const Tensor& x,
                                                      const Tensor& y) const {
  (void)consume(std::move(planned));
  for (size_t c = 0; c < chunks_.size(); ++c) add_residual(c, x, y);
  return FfnOutput<Planned>(*this, y);
}

MoeLayer::FfnOutput<MoeLayer::Planned> MoeLayer::prepare(FfnOutput<Routed>&& output,
                                                         RoutingTape* tape) const {
  const Tensor y = consume(std::move(output));
  const int64_t n = pass_.batch.slice_real;
  const int64_t k = pass_.pesc.moe.num_experts_per_tok;
  saved_.chosen.resize(static_cast<size_t>(n * k));
  finish_host_copy(pass_.stream, saved_.experts.row_range(0, n), saved_.chosen.data());
  if (tape != nullptr) tape->record(pass_.batch, layer_, saved_.chosen);
  for (size_t c = 0; c < chunks_.size(); ++c) {
    int32_t* chosen = saved_.chosen.data() + std::min(chunks_[c].rows.begin, n) * k;
    const auto row = static_cast<int64_t>(c);
    saved_.plans[c] =
        exchange_.prepare(pass_.stream.communication(), tensor_of(chosen, chunks_[c].batch.slice_real, k),
                          saved_.indices.row_range(row, row + 1));
  }
  return FfnOutput<Planned>(*this, y);
}

MoeLayer::Dispatched MoeLayer::dispatch(FfnOutput<Planned>&& output) const {
  const Tensor y = consume(std::move(output));
  if (exchange_.size() == 1) return Dispatched(*this, y);
  Stream& lane = pass_.stream.communication();
  const auto first = [&](size_t c) { return DispatchRound(pass_, exchange_, chunks_, saved_, c, 0); };
  pass_.lane.routed.hold(lane);
  for (size_t c = 0; c < chunks_.size(); ++c) first(c).send_weights();
  for (size_t c = 0; c < chunks_.size(); ++c) {
    pass_.lane.ready[c].hold(lane);
    first(c).send_rows();
    pass_.lane.arrived[c].set(lane);
  }
  return Dispatched(*this, y);
}

MoeLayer::Combining MoeLayer::experts(Dispatched&& dispatched) const {
  const Tensor y = consume(std::move(dispatched));
  Stream& s = pass_.stream;
  const PhaseScope phase(s, Phase::kAdapters);
  if (exchange_.size() == 1) {
    const int64_t n = pass_.batch.slice_real;
    const ExpertGroups& groups = saved_.plans[0].groups[0];
    const ExpertRows rows{groups, saved_.dropped.row_range(0, n), saved_.weights.row_range(0, n),
                          saved_.hidden.row_range(0, assignments(groups))};
    adapter_forward(s, adapter_args(pass_, parameters_, rows, y.row_range(0, n)), pass_.scratch);
    return Combining(*this);
  }
  Stream& lane = s.communication();
  for_rounds(pass_, exchange_, chunks_, saved_,
             [&](size_t c, const DispatchRound& round, const DispatchRound* next) {
               pass_.lane.arrived[c].hold(s);
               const Tensor out = round.received(pass_.ws.received_out);
               fill_zero(s, out);
               adapter_forward(s, adapter_args(pass_, parameters_, round.rows(), out), pass_.scratch);
               lane.follow(s);
               round.return_rows(y);
               if (next == nullptr) return;
               next->send_weights();
               next->send_rows();
               pass_.lane.arrived[c].set(lane);
             });
  return Combining(*this);
}

void MoeLayer::combine(Combining&& combining) const {
  (void)consume(std::move(combining));
  if (exchange_.size() > 1) pass_.stream.follow(pass_.stream.communication());
}

}  // namespace pesc
