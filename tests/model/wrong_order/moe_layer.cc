// Phases of a MoE layer in the right order, and in orders that must not compile: tests/model/wrong_order.py
// compiles this file twice. With -DRIGHT_ORDER each function calls what stands first; without, what stands
// second, which the compiler has to refuse at every line that says so.
#include "model/moe_layer.h"

#include <utility>

#ifdef RIGHT_ORDER
#define CALL(right, wrong) right
#else
#define CALL(right, wrong) wrong
#endif

namespace pesc {
namespace {

using Moe = MoeLayer;
using Output = Moe::FfnOutput<Moe::Planned>;

// Forward.
[[maybe_unused]] auto rows_travel_after_the_plan(const Moe& moe, Moe::FfnOutput<Moe::Routed> output) {
  return CALL(moe.dispatch(moe.prepare(std::move(output), nullptr)),
              moe.dispatch(std::move(output)));  // refused
}
[[maybe_unused]] auto rows_travel_after_the_ffn(const Moe& moe, Moe::Planned planned, const Tensor& x) {
  return CALL(moe.dispatch(moe.mask(std::move(planned), x, x)),
              moe.dispatch(std::move(planned)));  // refused
}
[[maybe_unused]] auto the_plan_comes_after_the_ffn(const Moe& moe, Moe::Routed routed,
                                                   Moe::FfnOutput<Moe::Routed> output) {
  return CALL((void(std::move(routed)), moe.prepare(std::move(output), nullptr)),
              moe.prepare(std::move(routed), nullptr));  // refused
}
[[maybe_unused]] auto experts_run_after_the_rows_were_sent(const Moe& moe, Output output) {
  return CALL(moe.experts(moe.dispatch(std::move(output))),
              moe.experts(std::move(output)));  // refused
}
[[maybe_unused]] void results_combine_after_the_experts(const Moe& moe, Moe::Dispatched dispatched) {
  return CALL(moe.combine(moe.experts(std::move(dispatched))),
              moe.combine(std::move(dispatched)));  // refused
}

// A recompute keeps the plan: it is not made again, and its choice is none that goes to the host.
[[maybe_unused]] auto a_kept_plan_is_not_prepared(const Moe& moe, Output output) {
  return CALL(moe.dispatch(std::move(output)), moe.prepare(std::move(output), nullptr));  // refused
}
[[maybe_unused]] auto a_new_choice_has_no_plan(const Moe& moe, Moe::Routed routed, Moe::Planned planned,
                                               const Tensor& x) {
  return CALL((void(std::move(routed)), moe.mask(std::move(planned), x, x)),
              moe.mask(std::move(routed), x, x));  // refused
}

// Backward.
[[maybe_unused]] auto adapters_need_the_gradient_sent(const Moe& moe, const Tensor& dy) {
  return CALL(moe.experts_backward(moe.dispatch_grad(dy)),
              moe.experts_backward(dy));  // refused
}
[[maybe_unused]] auto the_ffn_needs_the_adapters(const Moe& moe, Moe::GradDispatched sent, const Tensor& df) {
  const auto place = [&df](size_t) { return df; };
  const auto run = [](size_t, const Tensor&) {};
  return CALL(moe.ffn_backward(moe.experts_backward(std::move(sent)), place, run),
              moe.ffn_backward(std::move(sent), place, run));  // refused
}
[[maybe_unused]] auto the_router_comes_after_the_ffn(const Moe& moe, Moe::GradCombining combining,
                                                     const Tensor& t) {
  const auto place = [&t](size_t) { return t; };
  const auto run = [](size_t, const Tensor&) {};
  return CALL(moe.route_backward(moe.ffn_backward(std::move(combining), place, run), {t, t, t}, t),
              moe.route_backward(std::move(combining), {t, t, t}, t));  // refused
}
[[maybe_unused]] auto a_forward_is_no_backward(const Moe& moe, Moe::Dispatched dispatched, const Tensor& dy) {
  return CALL((void(std::move(dispatched)), moe.experts_backward(moe.dispatch_grad(dy))),
              moe.experts_backward(std::move(dispatched)));  // refused
}

// A state is consumed: it is handed over, cannot be kept, and is made by no one else.
[[maybe_unused]] auto a_state_is_handed_over(const Moe& moe, Moe::Dispatched dispatched) {
  return CALL(moe.experts(std::move(dispatched)),
              moe.experts(dispatched));  // refused
}
[[maybe_unused]] auto a_state_is_not_copied(Moe::Dispatched dispatched) {
  return CALL(Moe::Dispatched(std::move(dispatched)),
              std::make_pair(Moe::Dispatched(dispatched), 0));  // refused
}
[[maybe_unused]] auto a_state_is_the_layers_to_make(const Moe& moe, Output output) {
  return CALL(moe.dispatch(std::move(output)),
              Moe::Dispatched(moe));  // refused
}

}  // namespace
}  // namespace pesc
