#include "model/pesc_moe.h"

#include <algorithm>

#include "ops/adapter.h"
#include "ops/reduce.h"
#include "ops/router.h"

namespace pesc {
namespace {

AdapterGroups view(const ExpertGroups& g) {
  return {g.offsets, g.row, g.slot};
}

int64_t assignments(const ExpertGroups& g) {
  return g.offsets.empty() ? 0 : g.offsets.back();
}

// The rows of one round, on the rank that holds their experts.
struct Round {
  const ExpertGroups& groups;
  Tensor f, weights, hidden;
};

AdapterForward adapter_args(const Pass& pass, const MoeParameters& p, const Round& r, const Tensor& out) {
  return {view(r.groups), r.f, r.weights, p.down, p.up, static_cast<float>(pass.pesc.moe.scale),
          r.hidden,       out};
}

// One round of the exchange of one chunk: its rows at home and where they live on the expert rank. Those of
// the only round are kept for the backward, those of several are not.
class Trip {
 public:
  Trip(const Pass& pass, const ExpertExchange& exchange, std::span<const BatchChunk> chunks,
       const MoeSaved& saved, size_t c, int round)
      : pass_(pass),
        exchange_(exchange),
        saved_(saved),
        plan_(saved.plans[c]),
        begin_(chunks[c].rows.begin),
        tokens_(chunks[c].batch.slice_real),
        first_(static_cast<int64_t>(c) * exchange.capacity()),
        rows_(plan_.received(round)),
        round_(round) {
    const int64_t most = exchange.capacity() * std::min(pass.pesc.moe.top_k, exchange.local_experts());
    first_assignment_ = static_cast<int64_t>(c) * most;
  }

  [[nodiscard]] bool kept() const { return plan_.rounds == 1; }
  [[nodiscard]] Tensor received(const Tensor& buffer) const {
    return buffer.row_range(first_, first_ + rows_);
  }
  [[nodiscard]] Round round() const {
    const ExpertGroups& groups = plan_.groups[static_cast<size_t>(round_)];
    const Tensor& hidden = kept() ? saved_.hidden : pass_.ws.hidden;
    return {groups, f(), weights(),
            hidden.row_range(first_assignment_, first_assignment_ + assignments(groups))};
  }

  void send_rows() const { dispatch(saved_.dropped, f()); }
  void send_weights() const {
    exchange_.dispatch_slots(lane(), plan_, round_, home(saved_.weights), weights(), scratch());
  }
  void send_gradient(const Tensor& dy) const {
    if (!kept()) {  // the rows of several rounds were not kept: they come again
      send_rows();
      send_weights();
    }
    dispatch(dy, received(pass_.ws.received2));
  }
  // What the adapters wrote to ws.received_out is added to `to` [S, H] at home.
  void return_rows(const Tensor& to) const {
    exchange_.combine(lane(), plan_, round_, received(pass_.ws.received_out), home(to), scratch());
  }
  void return_weight_gradients() const {
    exchange_.combine_slots(lane(), plan_, round_, received(pass_.ws.received_dweights),
                            home(pass_.ws.dweights), scratch());
  }

 private:
  [[nodiscard]] Stream& lane() const { return pass_.stream.communication(); }
  [[nodiscard]] Arena& scratch() const { return pass_.lane.scratch; }
  [[nodiscard]] Tensor home(const Tensor& slice) const { return slice.row_range(begin_, begin_ + tokens_); }
  [[nodiscard]] Tensor f() const { return received(kept() ? saved_.received : pass_.ws.received); }
  [[nodiscard]] Tensor weights() const {
    return received(kept() ? saved_.received_weights : pass_.ws.received_weights);
  }
  void dispatch(const Tensor& slice, const Tensor& out) const {
    exchange_.dispatch(lane(), plan_, round_, home(slice), out, scratch());
  }

  const Pass& pass_;
  const ExpertExchange& exchange_;
  const MoeSaved& saved_;
  const ExchangePlan& plan_;
  int64_t begin_, tokens_;                   // at home
  int64_t first_, first_assignment_, rows_;  // on the expert rank
  int round_;
};

// Calls work(c, trip, next) for all rounds of all chunks, in the order of all ranks; `next` is the trip that
// takes the same memory afterwards, or null.
template <class Work>
void for_trips(const Pass& pass, const ExpertExchange& exchange, std::span<const BatchChunk> chunks,
               const MoeSaved& saved, Work&& work) {
  for (size_t c = 0; c < chunks.size(); ++c) {
    const int rounds = saved.plans[c].rounds;
    for (int round = 0; round < rounds; ++round) {
      const Trip trip(pass, exchange, chunks, saved, c, round);
      if (round + 1 == rounds) {
        work(c, trip, static_cast<const Trip*>(nullptr));
      } else {
        const Trip next(pass, exchange, chunks, saved, c, round + 1);
        work(c, trip, &next);
      }
    }
  }
}

}  // namespace

void moe_route(const Pass& pass, int64_t layer, const MoeParameters& p, const Tensor& x, const Tensor& stats,
               RoutingTape* tape, MoeSaved& saved) {
  Stream& s = pass.stream;
  const PhaseScope phase(s, Phase::kAdapters);
  const int64_t n = pass.batch.slice_real;
  const Tensor experts = saved.experts.row_range(0, n);
  Routing routing = Routing::kTopK;
  std::vector<int32_t> recorded(static_cast<size_t>(n * pass.pesc.moe.top_k));
  if (tape != nullptr && tape->replay(pass.batch, layer, recorded)) {
    routing = Routing::kReplay;
    copy_from_host(s, recorded.data(), experts);
  }
  router_forward(s,
                 {x.row_range(0, n), p.router, saved.probs.row_range(0, n), experts,
                  saved.weights.row_range(0, n), stats, routing},
                 pass.scratch);
  start_host_copy(s, experts);
  pass.lane.routed.set(s);
}

void moe_residual(const Pass& pass, int64_t layer, size_t c, const BatchChunk& chunk, const Tensor& x,
                  const Tensor& y, const MoeSaved& saved) {
  const PhaseScope phase(pass.stream, Phase::kAdapters);
  const auto mine = [&chunk](const Tensor& t) { return t.row_range(chunk.rows.begin, chunk.rows.end); };
  dropout_residual(pass.stream, pass.over(chunk.batch).slice_dropout(layer, DropoutSite::kAdapter), mine(x),
                   mine(saved.f), mine(y), mine(saved.dropped));
  pass.lane.ready[c].set(pass.stream);
}

void moe_prepare(const Pass& pass, int64_t layer, const ExpertExchange& exchange,
                 std::span<const BatchChunk> chunks, RoutingTape* tape, MoeSaved& saved) {
  const int64_t n = pass.batch.slice_real;
  const int64_t k = pass.pesc.moe.top_k;
  saved.chosen.resize(static_cast<size_t>(n * k));
  finish_host_copy(pass.stream, saved.experts.row_range(0, n), saved.chosen.data());
  if (tape != nullptr) tape->record(pass.batch, layer, saved.chosen);
  for (size_t c = 0; c < chunks.size(); ++c) {
    int32_t* chosen = saved.chosen.data() + std::min(chunks[c].rows.begin, n) * k;
    const auto row = static_cast<int64_t>(c);
    saved.plans[c] =
        exchange.prepare(pass.stream.communication(), tensor_of(chosen, chunks[c].batch.slice_real, k),
                         saved.indices.row_range(row, row + 1));
  }
}

void moe_forward(const Pass& pass, const MoeParameters& p, const ExpertExchange& exchange,
                 std::span<const BatchChunk> chunks, const Tensor& y, MoeSaved& saved) {
  Stream& s = pass.stream;
  const PhaseScope phase(s, Phase::kAdapters);
  if (exchange.size() == 1) {
    const int64_t n = pass.batch.slice_real;
    const ExpertGroups& groups = saved.plans[0].groups[0];
    const Round r{groups, saved.dropped.row_range(0, n), saved.weights.row_range(0, n),
                  saved.hidden.row_range(0, assignments(groups))};
    return adapter_forward(s, adapter_args(pass, p, r, y.row_range(0, n)), pass.scratch);
  }
  Stream& lane = s.communication();
  const auto first = [&](size_t c) { return Trip(pass, exchange, chunks, saved, c, 0); };
  pass.lane.routed.hold(lane);
  for (size_t c = 0; c < chunks.size(); ++c) first(c).send_weights();
  for (size_t c = 0; c < chunks.size(); ++c) {
    pass.lane.ready[c].hold(lane);
    first(c).send_rows();
    pass.lane.arrived[c].set(lane);
  }
  for_trips(pass, exchange, chunks, saved, [&](size_t c, const Trip& trip, const Trip* next) {
    pass.lane.arrived[c].hold(s);
    const Tensor out = trip.received(pass.ws.received_out);
    fill_zero(s, out);
    adapter_forward(s, adapter_args(pass, p, trip.round(), out), pass.scratch);
    lane.follow(s);
    trip.return_rows(y);
    if (next == nullptr) return;
    next->send_weights();
    next->send_rows();
    pass.lane.arrived[c].set(lane);
  });
  s.follow(lane);
}

void moe_send_gradient(const Pass& pass, const ExpertExchange& exchange, std::span<const BatchChunk> chunks,
                       const Tensor& dy, const MoeSaved& saved) {
  if (exchange.size() == 1) return;
  Stream& lane = pass.stream.communication();
  lane.follow(pass.stream);
  for (size_t c = 0; c < chunks.size(); ++c) {
    Trip(pass, exchange, chunks, saved, c, 0).send_gradient(dy);
    pass.lane.arrived[c].set(lane);
  }
}

void moe_backward(const Pass& pass, const MoeParameters& p, const ExpertExchange& exchange,
                  std::span<const BatchChunk> chunks, const Tensor& dy, const MoeSaved& saved) {
  Stream& s = pass.stream;
  const PhaseScope phase(s, Phase::kAdapters);
  const int64_t n = pass.batch.slice_real;
  const Tensor delta = pass.ws.delta.row_range(0, pass.batch.slice);
  const float scale = static_cast<float>(pass.pesc.moe.scale);
  if (exchange.size() == 1) {
    const ExpertGroups& groups = saved.plans[0].groups[0];
    fill_zero(s, delta.row_range(n, delta.rows));
    return adapter_backward(
        s,
        {view(groups), saved.dropped.row_range(0, n), saved.weights.row_range(0, n), p.down, p.up, scale,
         saved.hidden.row_range(0, assignments(groups)), dy.row_range(0, n), delta.row_range(0, n),
         pass.ws.dweights.row_range(0, n), p.ddown, p.dup},
        pass.scratch);
  }
  Stream& lane = s.communication();
  fill_zero(s, delta);
  for_trips(pass, exchange, chunks, saved, [&](size_t c, const Trip& trip, const Trip* next) {
    pass.lane.arrived[c].hold(s);
    const Round r = trip.round();
    if (!trip.kept()) adapter_hidden(s, adapter_args(pass, p, r, {}), pass.scratch);
    adapter_backward(
        s,
        {view(r.groups), r.f, r.weights, p.down, p.up, scale, r.hidden, trip.received(pass.ws.received2),
         trip.received(pass.ws.received_out), trip.received(pass.ws.received_dweights), p.ddown, p.dup},
        pass.scratch);
    lane.follow(s);
    trip.return_rows(delta);
    trip.return_weight_gradients();
    if (next == nullptr) return pass.lane.combined[c].set(lane);
    next->send_gradient(dy);
    pass.lane.arrived[c].set(lane);
  });
}

void moe_input_gradient(const Pass& pass, int64_t layer, size_t c, const BatchChunk& chunk, const Tensor& dy,
                        const Tensor& df) {
  const PhaseScope phase(pass.stream, Phase::kAdapters);
  pass.lane.combined[c].hold(pass.stream);
  const auto mine = [&chunk](const Tensor& t) { return t.row_range(chunk.rows.begin, chunk.rows.end); };
  dropout_sum(pass.stream, pass.over(chunk.batch).slice_dropout(layer, DropoutSite::kAdapter),
              mine(pass.ws.delta), mine(dy), df);
}

LowRankTerm moe_route_backward(const Pass& pass, const MoeParameters& p, const Tensor& x, const Tensor& rstd,
                               const Tensor& norm, const Tensor& balance_grad, const MoeSaved& saved) {
  const PhaseScope phase(pass.stream, Phase::kAdapters);
  const int64_t n = pass.batch.slice_real;
  const Tensor dlogits = pass.ws.dlogits.row_range(0, n);
  router_backward(pass.stream,
                  {x.row_range(0, n), p.router, saved.probs.row_range(0, n), saved.experts.row_range(0, n),
                   saved.weights.row_range(0, n), pass.ws.dweights.row_range(0, n), balance_grad, p.drouter,
                   dlogits, rstd.col_range(0, n), norm},
                  pass.scratch);
  return {dlogits, p.router};
}

}  // namespace pesc
