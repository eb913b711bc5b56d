// The routed part of a PESC layer: y = f(x) + sum over the chosen experts of w_e A_e(f(x)), with the router
// on the FFN's input and the adapters on its output (model/README.md). The rows of f are sent to the ranks
// that hold the experts of their token; only the weighted sums of adapter outputs are sent back. With one
// rank per expert group nothing is copied or sent.
//
// A layer of one micro-batch runs in phases. Each takes the state that the phase before it returned, so that
// the order below is the only one that compiles (tests/model/wrong_order).
//
//   forward     route -> Routed                             while FFN inputs are gathered
//               ffn -> FfnOutput<Routed>                    calls route, and the FFN chunk by chunk
//               prepare -> FfnOutput<Planned>               the host waits for the choice
//               dispatch -> Dispatched, experts -> Combining, combine
//   recompute   keep_plan -> Planned
//               ffn, or mask where f was kept -> FfnOutput<Planned>
//               dispatch -> Dispatched, experts -> Combining, combine
//   backward    dispatch_grad -> GradDispatched
//               experts_backward -> GradCombining
//               ffn_backward -> FfnDone                     calls the FFN's backward chunk by chunk
//               route_backward
//
// Between two phases the caller may enqueue other work. The token exchange runs on stream.comm_stream(),
// everything else on `stream`; the events of ctx.comm order the two.
//
// S tokens of the slice with padding, H hidden, E experts, k choices.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

#include "model/forward_context.h"
#include "model/moe_state.h"
#include "model/parameters.h"
#include "model/router_replay.h"
#include "ops/low_rank.h"
#include "parallel/token_dispatcher.h"

namespace pesc {

class MoeLayer {
 public:
  using Routed = MoeState<struct RoutedPhase>;    // the choice of experts is on its way to the host
  using Planned = MoeState<struct PlannedPhase>;  // the plans of the exchange are there
  template <class Choice>
  struct FfnOutputPhase {};
  // f and its masked copy are enqueued, and y = x + f.
  template <class Choice>
  using FfnOutput = MoeState<FfnOutputPhase<Choice>>;
  using Dispatched = MoeState<struct DispatchedPhase>;  // rows are on their way to the experts
  using Combining = MoeState<struct CombiningPhase>;    // results are on their way home
  using GradDispatched = MoeState<struct GradDispatchedPhase>;
  using GradCombining = MoeState<struct GradCombiningPhase>;
  using FfnDone = MoeState<struct FfnDonePhase>;

  // Of one layer and micro-batch. All but `dispatcher` are the pass's; all outlive this.
  MoeLayer(const ForwardContext& ctx, int64_t layer, const MoeParameters& parameters,
           const TokenDispatcher& dispatcher, std::span<const BatchChunk> chunks, MoeSaved& saved);
  MoeLayer(const MoeLayer&) = delete;
  MoeLayer& operator=(const MoeLayer&) = delete;

  // x [S, H] is the FFN's input. Chooses the experts and adds to stats [2, E]; the copy of the choice to the
  // host is begun.
  [[nodiscard]] Routed route(const Tensor& x, const Tensor& stats, RouterReplay* router_replay) const;
  // The choice of this micro-batch's forward and its plans, for a recompute.
  [[nodiscard]] Planned keep_plan() const;

  // For chunk after chunk: calls run(c, overlapped), which enqueues the FFN of chunk c into its rows of
  // saved.f, and once of all, for the first chunk, calls overlapped(); that calls choose(), which returns
  // route() or keep_plan(). Then the chunk's rows of y [S, H] = x [S, H] + f are written, and
  // saved.dropout_out.
  template <class Choose, class Run>
  requires std::is_same_v<std::invoke_result_t<Choose>, Routed> ||
      std::is_same_v<std::invoke_result_t<Choose>, Planned>
  [[nodiscard]] FfnOutput<std::invoke_result_t<Choose>> ffn(const Tensor& x, const Tensor& y, Choose&& choose,
                                                            Run&& run) const {
    std::optional<std::invoke_result_t<Choose>> chosen;
    const std::function<void()> overlapped = [&chosen, &choose] { chosen = choose(); };
    for (size_t c = 0; c < chunks_.size(); ++c) {
      run(c, c == 0 ? overlapped : std::function<void()>{});
      add_residual(c, x, y);
    }
    PESC_CHECK(chosen.has_value(), "the FFN of layer ", layer_, " did not call the router");
    (void)consume(std::move(*chosen));
    return FfnOutput<std::invoke_result_t<Choose>>(*this, y);
  }
  // The same where saved.f holds f still.
  [[nodiscard]] FfnOutput<Planned> mask(Planned&& planned, const Tensor& x, const Tensor& y) const;

  // The choice is on the host, and the ranks of the expert group agree on the exchange of every chunk. The
  // FFN, enqueued before, hides the wait. Collective over the expert group.
  [[nodiscard]] FfnOutput<Planned> prepare(FfnOutput<Routed>&& output, RouterReplay* router_replay) const;
  // The rows of every chunk travel as soon as its f is there: under the FFN of the next chunk.
  [[nodiscard]] Dispatched dispatch(FfnOutput<Planned>&& output) const;
  // y += sum w A(dropout(f)), added up at home as it comes back: under the adapters of the next chunk.
  [[nodiscard]] Combining experts(Dispatched&& dispatched) const;
  // What is enqueued on the stream from now on finds y complete.
  void combine(Combining&& combining) const;

  // dy [S, H] is the gradient of y. REQUIRES that nobody writes dy before ffn_backward has returned. Its rows
  // travel to the experts.
  [[nodiscard]] GradDispatched dispatch_grad(const Tensor& dy) const;
  // The adapters' backward. What it gives to f travels home to ws.adapter_dinput, what it gives to the
  // router's weights to ws.dtopk_weights.
  [[nodiscard]] GradCombining experts_backward(GradDispatched&& dispatched) const;
  // For chunk after chunk: writes df [rows, H], contiguous, = dy + mask * (the adapters' input gradient) into
  // place(c), then calls run(c, df), which enqueues the FFN's backward of chunk c.
  template <class Place, class Run>
  [[nodiscard]] FfnDone ffn_backward(GradCombining&& combining, Place&& place, Run&& run) const {
    const Tensor dy = consume(std::move(combining));
    for (size_t c = 0; c < chunks_.size(); ++c) {
      const Tensor df = place(c);
      input_gradient(c, dy, df);
      run(c, df);
    }
    return FfnDone(*this);
  }
  // What the router read: RMSNorm of x [S, H] with rstd [1, S] and the weight norm [1, H].
  struct RouterInput {
    Tensor x, rstd, norm;
  };
  // The router's backward from ws.dtopk_weights and the gradient of the aux loss [1, E]. The gradient of the
  // FFN's input is not written: the caller adds the term that is returned, of the slice's first rows. Uses
  // ws.dlogits.
  [[nodiscard]] LowRankTerm route_backward(FfnDone&& done, const RouterInput& input,
                                           const Tensor& aux_loss_grad) const;

 private:
  template <class Phase>
  Tensor consume(MoeState<Phase>&& state) const {
    PESC_CHECK(std::exchange(state.layer_, nullptr) == this, "layer ", layer_,
               ": this state was consumed already, or is another layer's");
    return state.tensor_;
  }
  void add_residual(size_t c, const Tensor& x, const Tensor& y) const;
  void input_gradient(size_t c, const Tensor& dy, const Tensor& df) const;

  const ForwardContext& ctx_;
  int64_t layer_;
  const MoeParameters& parameters_;
  const TokenDispatcher& dispatcher_;
  std::span<const BatchChunk> chunks_;
  MoeSaved& saved_;
};

}  // namespace pesc
