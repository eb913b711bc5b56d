#include "model/pesc_moe.h"

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

int64_t round_rows(const ExchangePlan& plan, int round, int ep) {
  int64_t rows = 0;
  for (int r = 0; r < ep; ++r) rows += plan.round_recv[static_cast<size_t>(round * ep + r)];
  return rows;
}

// The rows of one round, on the rank that holds their experts.
struct Round {
  ExpertGroups groups;
  Tensor f, weights, hidden;
};

AdapterForward adapter_args(const Pass& pass, const MoeParameters& p, const Round& r, const Tensor& out) {
  return {view(r.groups), r.f, r.weights, p.down, p.up, static_cast<float>(pass.pesc.moe.scale),
          r.hidden,       out};
}

// Where the rows of a round live: those of the only round are kept for the backward, those of several are
// not.
Round round_of(const Pass& pass, const ExpertExchange& exchange, const MoeSaved& saved, int round) {
  const bool kept = saved.plan.rounds == 1;
  Round r;
  r.groups = kept ? saved.groups : exchange.groups(saved.plan, round);
  const int64_t rows = round_rows(saved.plan, round, exchange.size());
  r.f = (kept ? saved.received : pass.ws.received).row_range(0, rows);
  r.weights = (kept ? saved.received_weights : pass.ws.received_weights).row_range(0, rows);
  r.hidden = (kept ? saved.hidden : pass.ws.hidden).row_range(0, assignments(r.groups));
  return r;
}

void send_round(const Pass& pass, const ExpertExchange& exchange, const MoeSaved& saved, int round,
                const Round& r) {
  const int64_t n = pass.batch.slice_real;
  exchange.dispatch(pass.stream, saved.plan, round, saved.dropped.row_range(0, n), r.f, pass.scratch);
  exchange.dispatch_slots(pass.stream, saved.plan, round, saved.weights.row_range(0, n), r.weights,
                          pass.scratch);
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
}

void moe_prepare(const Pass& pass, int64_t layer, const ExpertExchange& exchange, RoutingTape* tape,
                 MoeSaved& saved) {
  const int64_t n = pass.batch.slice_real;
  const int64_t k = pass.pesc.moe.top_k;
  saved.chosen.resize(static_cast<size_t>(n * k));
  finish_host_copy(pass.stream, saved.experts.row_range(0, n), saved.chosen.data());
  if (tape != nullptr) tape->record(pass.batch, layer, saved.chosen);
  saved.plan = exchange.prepare(pass.stream, tensor_of(saved.chosen.data(), n, k));
  if (saved.plan.rounds == 1) saved.groups = exchange.groups(saved.plan, 0);
}

void moe_forward(const Pass& pass, int64_t layer, const MoeParameters& p, const ExpertExchange& exchange,
                 const Tensor& x, const Tensor& y, MoeSaved& saved) {
  Stream& s = pass.stream;
  const PhaseScope phase(s, Phase::kAdapters);
  const int64_t n = pass.batch.slice_real;
  const int64_t all = pass.batch.slice;
  dropout_residual(s, pass.slice_dropout(layer, DropoutSite::kAdapter), x, saved.f.row_range(0, all), y,
                   saved.dropped.row_range(0, all));
  if (exchange.size() == 1) {
    const Round r{saved.groups, saved.dropped.row_range(0, n), saved.weights.row_range(0, n),
                  saved.hidden.row_range(0, assignments(saved.groups))};
    adapter_forward(s, adapter_args(pass, p, r, y.row_range(0, n)), pass.scratch);
    return;
  }
  for (int round = 0; round < saved.plan.rounds; ++round) {
    const Round r = round_of(pass, exchange, saved, round);
    send_round(pass, exchange, saved, round, r);
    const Tensor out = pass.ws.received_out.row_range(0, r.f.rows);
    fill_zero(s, out);
    adapter_forward(s, adapter_args(pass, p, r, out), pass.scratch);
    exchange.combine(s, saved.plan, round, out, y.row_range(0, n), pass.scratch);
  }
}

void moe_backward(const Pass& pass, int64_t layer, const MoeParameters& p, const ExpertExchange& exchange,
                  const Tensor& dy, const Tensor& df, const MoeSaved& saved) {
  Stream& s = pass.stream;
  const PhaseScope phase(s, Phase::kAdapters);
  const int64_t n = pass.batch.slice_real;
  const Tensor dweights = pass.ws.dweights.row_range(0, n);
  const Tensor delta = pass.ws.delta.row_range(0, pass.batch.slice);
  const float scale = static_cast<float>(pass.pesc.moe.scale);
  if (exchange.size() == 1) {
    fill_zero(s, delta.row_range(n, delta.rows));
    adapter_backward(s,
                     {view(saved.groups), saved.dropped.row_range(0, n), saved.weights.row_range(0, n),
                      p.down, p.up, scale, saved.hidden.row_range(0, assignments(saved.groups)),
                      dy.row_range(0, n), delta.row_range(0, n), dweights, p.ddown, p.dup},
                     pass.scratch);
  } else {
    fill_zero(s, delta);
    for (int round = 0; round < saved.plan.rounds; ++round) {
      const Round r = round_of(pass, exchange, saved, round);
      if (saved.plan.rounds > 1) {  // the rows of several rounds were not kept: they come again
        send_round(pass, exchange, saved, round, r);
        adapter_hidden(s, adapter_args(pass, p, r, {}), pass.scratch);
      }
      const Tensor dout = pass.ws.received2.row_range(0, r.f.rows);
      const Tensor drows = pass.ws.received_out.row_range(0, r.f.rows);
      const Tensor dslots = pass.ws.received_dweights.row_range(0, r.f.rows);
      exchange.dispatch(s, saved.plan, round, dy.row_range(0, n), dout, pass.scratch);
      adapter_backward(s,
                       {view(r.groups), r.f, r.weights, p.down, p.up, scale, r.hidden, dout, drows, dslots,
                        p.ddown, p.dup},
                       pass.scratch);
      exchange.combine(s, saved.plan, round, drows, delta.row_range(0, n), pass.scratch);
      exchange.combine_slots(s, saved.plan, round, dslots, dweights, pass.scratch);
    }
  }
  dropout_sum(s, pass.slice_dropout(layer, DropoutSite::kAdapter), delta, dy, df);
}

RouterTerm moe_route_backward(const Pass& pass, const MoeParameters& p, const Tensor& x,
                              const Tensor& balance_grad, const MoeSaved& saved) {
  const PhaseScope phase(pass.stream, Phase::kAdapters);
  const int64_t n = pass.batch.slice_real;
  const Tensor dlogits = pass.ws.dlogits.row_range(0, n);
  router_backward(pass.stream, {x.row_range(0, n), p.router, saved.probs.row_range(0, n),
                                saved.experts.row_range(0, n), saved.weights.row_range(0, n),
                                pass.ws.dweights.row_range(0, n), balance_grad, p.drouter, dlogits});
  return {dlogits, p.router};
}

}  // namespace pesc
