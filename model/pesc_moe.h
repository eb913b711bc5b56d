// The PESC layer (design section 1): y = f(x) + sum over the chosen experts of w_e A_e(f(x)), with the router
// on the FFN input and the adapters on its output. Tokens travel to the ranks that hold their experts; only
// the weighted sums of adapter outputs come back. With one rank per expert group nothing is copied or sent.
#pragma once

#include "model/parameters.h"
#include "model/pass.h"
#include "ops/router.h"
#include "parallel/expert_exchange.h"

namespace pesc {

// The choice of experts of a recorded run, or a recorder of this one (a test mode): [slice_real, k] expert
// numbers of one layer, in falling-logit order.
class RoutingTape {
 public:
  virtual ~RoutingTape() = default;
  // True when `experts` was filled with the recorded choice.
  virtual bool replay(const Batch& batch, int64_t layer, std::vector<int32_t>& experts) = 0;
  virtual void record(const Batch& batch, int64_t layer, const std::vector<int32_t>& experts) = 0;
};

// Before the FFN: x [S, H] is its input. Chooses the experts and adds to stats [2, E]; the choice starts for
// the host.
void moe_route(const Pass& pass, int64_t layer, const MoeParameters& p, const Tensor& x, const Tensor& stats,
               RoutingTape* tape, MoeSaved& saved);
// Once the FFN is enqueued, which hides the wait: the choice is on the host, and the ranks of the expert
// group agree on the exchange.
void moe_prepare(const Pass& pass, int64_t layer, const ExpertExchange& exchange, RoutingTape* tape,
                 MoeSaved& saved);
// After the FFN: saved.f holds f; y [S, H] = x + f + sum w A(dropout(f)), written, and saved.dropped.
void moe_forward(const Pass& pass, int64_t layer, const MoeParameters& p, const ExpertExchange& exchange,
                 const Tensor& x, const Tensor& y, MoeSaved& saved);
// dy [S, H] is the gradient of y -> df [S, H] written: dy + mask * (the adapters' input gradient);
// ws.dweights written.
void moe_backward(const Pass& pass, int64_t layer, const MoeParameters& p, const ExpertExchange& exchange,
                  const Tensor& dy, const Tensor& df, const MoeSaved& saved);
// The router's backward from ws.dweights and the balance gradient [1, E], but for the gradient of x, which is
// the term that it returns. Uses ws.dlogits.
[[nodiscard]] RouterTerm moe_route_backward(const Pass& pass, const MoeParameters& p, const Tensor& x,
                                            const Tensor& balance_grad, const MoeSaved& saved);

}  // namespace pesc
