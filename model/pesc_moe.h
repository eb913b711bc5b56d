// The PESC layer (design section 1): y = f(x) + sum over the chosen experts of w_e A_e(f(x)), with the router
// on the FFN input and the adapters on its output. Tokens travel to the ranks that hold their experts; only
// the weighted sums of adapter outputs come back. With one rank per expert group nothing is copied or sent.
#pragma once

#include <span>

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
// After the FFN of chunk c of the slice, whose rows of saved.f hold f: those of y [S, H] are written, x + f,
// and those of saved.dropped.
void moe_residual(const Pass& pass, int64_t layer, size_t c, const BatchChunk& chunk, const Tensor& x,
                  const Tensor& y, const MoeSaved& saved);
// Once the FFN is enqueued, which hides the wait: the choice is on the host, and the ranks of the expert
// group agree on the exchange of every chunk.
void moe_prepare(const Pass& pass, int64_t layer, const ExpertExchange& exchange,
                 std::span<const BatchChunk> chunks, RoutingTape* tape, MoeSaved& saved);
// y [S, H] += sum w A(dropout(f)). The rows of a chunk travel as soon as they are there: under the FFN of the
// next, and back under the adapters of the next.
void moe_forward(const Pass& pass, const MoeParameters& p, const ExpertExchange& exchange,
                 std::span<const BatchChunk> chunks, const Tensor& y, MoeSaved& saved);

// The backward. dy [S, H] is the gradient of y, and stays as it is until the last of these. First the rows of
// dy start to travel,
void moe_send_gradient(const Pass& pass, const ExpertExchange& exchange, std::span<const BatchChunk> chunks,
                       const Tensor& dy, const MoeSaved& saved);
// then the adapters' backward: what it gives starts to travel back, to ws.delta and ws.dweights,
void moe_backward(const Pass& pass, const MoeParameters& p, const ExpertExchange& exchange,
                  std::span<const BatchChunk> chunks, const Tensor& dy, const MoeSaved& saved);
// and chunk by chunk df [rows, H] is written, contiguous: dy + mask * (the adapters' input gradient).
void moe_input_gradient(const Pass& pass, int64_t layer, size_t c, const BatchChunk& chunk, const Tensor& dy,
                        const Tensor& df);
// The router's backward from ws.dweights and the balance gradient [1, E], but for the gradient of the FFN's
// input, which is the term that it returns. That input is RMSNorm of x [S, H] with rstd [1, S] and the weight
// norm. After moe_input_gradient of all chunks. Uses ws.dlogits.
[[nodiscard]] RouterTerm moe_route_backward(const Pass& pass, const MoeParameters& p, const Tensor& x,
                                            const Tensor& rstd, const Tensor& norm,
                                            const Tensor& balance_grad, const MoeSaved& saved);

}  // namespace pesc
