// ranks: 1
// A MoE layer's phases: each state is taken by the phases that come after it and by no others, the phases in
// their order compute what plain loops do, and a state that was consumed is refused. That the compiler
// refuses other orders, tests/model/wrong_order.py shows.
#include "model/moe_layer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops/adapter.h"
#include "ops/router.h"
#include "parallel/mpi_session.h"
#include "tests/ops/host_matrix.h"

namespace pesc {
namespace {

using Moe = MoeLayer;

template <class State>
concept Prepares = requires(const Moe& moe, State s) {
  moe.prepare(std::move(s), nullptr);
};
template <class State>
concept Masks = requires(const Moe& moe, State s, const Tensor& t) {
  moe.mask(std::move(s), t, t);
};
template <class State>
concept Dispatches = requires(const Moe& moe, State s) {
  moe.dispatch(std::move(s));
};
template <class State>
concept RunsExperts = requires(const Moe& moe, State s) {
  moe.experts(std::move(s));
};
template <class State>
concept Combines = requires(const Moe& moe, State s) {
  moe.combine(std::move(s));
};
template <class State>
concept RunsExpertsBackward = requires(const Moe& moe, State s) {
  moe.experts_backward(std::move(s));
};
template <class State>
concept RunsFfnBackward = requires(const Moe& moe, State s, Tensor (*place)(size_t),
                                   void (*run)(size_t, const Tensor&)) {
  moe.ffn_backward(std::move(s), place, run);
};
template <class State>
concept RoutesBackward = requires(const Moe& moe, State s, const Moe::RouterInput& in, const Tensor& t) {
  moe.route_backward(std::move(s), in, t);
};

// For one state: the phases that take it, one bit each.
template <class State>
constexpr int phases_after() {
  return Prepares<State> << 0 | Masks<State> << 1 | Dispatches<State> << 2 | RunsExperts<State> << 3 |
         Combines<State> << 4 | RunsExpertsBackward<State> << 5 | RunsFfnBackward<State> << 6 |
         RoutesBackward<State> << 7;
}
template <class State>
constexpr bool moves_only() {
  return std::is_nothrow_move_constructible_v<State> && !std::is_copy_constructible_v<State> &&
         !std::is_copy_assignable_v<State> && !std::is_default_constructible_v<State> &&
         !std::is_constructible_v<State, const Moe&>;
}

TEST(MoeLayer, EachStateIsTakenByThePhaseAfterItAlone) {
  static_assert(phases_after<Moe::Routed>() == 0);  // `ffn` alone, which makes FfnOutput of it
  static_assert(phases_after<Moe::FfnOutput<Moe::Routed>>() == 1 << 0);
  static_assert(phases_after<Moe::Planned>() == 1 << 1);
  static_assert(phases_after<Moe::FfnOutput<Moe::Planned>>() == 1 << 2);
  static_assert(phases_after<Moe::Dispatched>() == 1 << 3);
  static_assert(phases_after<Moe::Combining>() == 1 << 4);
  static_assert(phases_after<Moe::GradDispatched>() == 1 << 5);
  static_assert(phases_after<Moe::GradCombining>() == 1 << 6);
  static_assert(phases_after<Moe::FfnDone>() == 1 << 7);
  static_assert(moves_only<Moe::Routed>() && moves_only<Moe::Planned>() && moves_only<Moe::Dispatched>() &&
                moves_only<Moe::FfnOutput<Moe::Routed>>() && moves_only<Moe::FfnOutput<Moe::Planned>>() &&
                moves_only<Moe::Combining>() && moves_only<Moe::GradDispatched>() &&
                moves_only<Moe::GradCombining>() && moves_only<Moe::FfnDone>());
  // What a phase returns is the state of the row above that the next one takes.
  static_assert(
      std::is_same_v<decltype(&Moe::prepare), Moe::FfnOutput<Moe::Planned> (Moe::*)(
                                                  Moe::FfnOutput<Moe::Routed>&&, RouterReplay*) const>);
  EXPECT_TRUE((std::is_same_v<decltype(&Moe::experts), Moe::Combining (Moe::*)(Moe::Dispatched &&) const>));
}

constexpr int64_t kTokens = 6, kReal = 5;  // the last is padding
constexpr int64_t kHidden = 8, kExperts = 4, kTopK = 2, kDim = 3;

// A layer of one rank on the CPU, whose "FFN" is f = 2 x.
class MoeLayerTest : public testing::Test {
 protected:
  MoeLayerTest() {
    pesc_.moe = {kExperts, kTopK, kDim, 0.7, 0, 0.01};
    batch_.tokens = batch_.slice_real = kReal;
    batch_.slice = batch_.padded = kTokens;
    batch_.positions = batch_.slice_positions = batch_.chunked_positions =
        tensor_of(positions_.data(), 1, kTokens);
    batch_.samples = batch_.slice_samples = batch_.chunked_samples = tensor_of(samples_.data(), 1, kTokens);
    chunks_.emplace_back(batch_, Range{0, kTokens});
    saved_.f = saved_.dropout_out = f_.view;
    saved_.probs = probs_.view;
    saved_.topk_weights = weights_.view;
    saved_.topk_indices = tensor_of(experts_.data(), kTokens, kTopK);
    saved_.adapter_pre_act = hidden_.view;
    saved_.indices = Tensor{nullptr, DType::kI32, 1, 0, 0};
    ws_.adapter_dinput = delta_.view;
    ws_.dtopk_weights = dweights_.view;
    ws_.dlogits = dlogits_.view;
  }

  [[nodiscard]] auto ffn() {
    return [this](size_t, const std::function<void()>& overlapped) {
      if (overlapped) overlapped();
      for (int64_t t = 0; t < kTokens; ++t)
        for (int64_t h = 0; h < kHidden; ++h) f_(t, h) = 2 * x_(t, h);
    };
  }
  [[nodiscard]] Moe::FfnOutput<Moe::Planned> planned(const Moe& moe) {
    const auto route = [&] { return moe.route(x_.view, stats_.view, nullptr); };
    return moe.prepare(moe.ffn(x_.view, y_.view, route, ffn()), nullptr);
  }

  MpiSession session_;
  std::unique_ptr<Communicator> world_ = session_.world();
  Stream stream_{Device{}};
  TensorParallel tp_{*world_};
  TokenDispatcher exchange_{*world_, kExperts, kTopK, 1};
  ModelConfig model_;
  PescConfig pesc_;
  std::vector<int32_t> positions_ = std::vector<int32_t>(kTokens);
  std::vector<int64_t> samples_ = std::vector<int64_t>(kTokens);
  std::vector<int32_t> experts_ = std::vector<int32_t>(kTokens * kTopK, -1);
  HostMatrix x_ = HostMatrix::normal(kTokens, kHidden, 1), y_{kTokens, kHidden}, f_{kTokens, kHidden};
  HostMatrix router_ = HostMatrix::normal(kExperts, kHidden, 2);
  HostMatrix down_ = HostMatrix::normal(kExperts * kDim, kHidden, 3);
  HostMatrix up_ = HostMatrix::normal(kExperts * kHidden, kDim, 4);
  HostMatrix probs_{kTokens, kExperts}, weights_{kTokens, kTopK}, stats_{2, kExperts};
  HostMatrix hidden_{kTokens * kTopK, kDim};
  HostMatrix delta_{kTokens, kHidden}, dweights_{kTokens, kTopK}, dlogits_{kTokens, kExperts};
  Batch batch_;
  std::vector<BatchChunk> chunks_;
  MoeSaved saved_;
  Workspace ws_;
  MoeParameters parameters_{router_.view, {}, down_.view, {}, up_.view, {}};
  Arena scratch_{"scratch", Device{},
                 router_scratch_bytes(Device{}, kTokens, kExperts, kHidden) +
                     adapter_scratch_bytes(Device{}, kTokens, kTopK, kHidden, kDim)};
  Arena exchange_scratch_{"exchange", Device{}, 0};
  CommContext comm_{.scratch = exchange_scratch_, .routed = {}, .ready = {}, .arrived = {}, .combined = {}};
  ForwardContext pass_{stream_, tp_, ws_, scratch_, comm_, model_, pesc_, batch_, ForwardMode::kEval, 0, 0};
};

// y = x + f + sum over the token's two best experts of w scale Up gelu(Down f), in double.
double expected(const HostMatrix& x, const HostMatrix& router, const HostMatrix& down, const HostMatrix& up,
                double scale, int64_t t, int64_t h) {
  std::vector<double> logits(kExperts);
  for (int64_t e = 0; e < kExperts; ++e)
    for (int64_t i = 0; i < kHidden; ++i)
      logits[static_cast<size_t>(e)] += static_cast<double>(x(t, i)) * router(e, i);
  std::vector<int64_t> order(kExperts);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  double all = 0;
  double sum = 0;
  for (int64_t j = 0; j < kTopK; ++j) {
    const int64_t e = order[static_cast<size_t>(j)];
    const double weight = std::exp(logits[static_cast<size_t>(e)]);
    all += weight;
    for (int64_t d = 0; d < kDim; ++d) {
      double a = 0;
      for (int64_t i = 0; i < kHidden; ++i)
        a += static_cast<double>(down(e * kDim + d, i)) * 2.0 * static_cast<double>(x(t, i));
      const double gelu = 0.5 * a * (1 + std::erf(a / std::sqrt(2.0)));
      sum += weight * static_cast<double>(up(e * kHidden + h, d)) * gelu;
    }
  }
  return 3.0 * static_cast<double>(x(t, h)) + scale * sum / all;
}

TEST_F(MoeLayerTest, TheForwardAddsTheChosenExpertsAndARecomputeRepeatsItsBits) {
  const Moe moe(pass_, 0, parameters_, exchange_, chunks_, saved_);
  moe.combine(moe.experts(moe.dispatch(planned(moe))));
  for (int64_t t = 0; t < kReal; ++t)
    for (int64_t h = 0; h < kHidden; ++h)
      EXPECT_NEAR(y_(t, h), expected(x_, router_, down_, up_, pesc_.moe.adapter_scaling, t, h), 1e-3)
          << t << " " << h;
  for (int64_t h = 0; h < kHidden; ++h) EXPECT_EQ(y_(kReal, h), 3 * x_(kReal, h));  // padding has no experts

  const std::vector<double> first = y_.values();
  const auto keep_plan = [&] { return moe.keep_plan(); };
  y_.fill(NAN);
  moe.combine(moe.experts(moe.dispatch(moe.ffn(x_.view, y_.view, keep_plan, ffn()))));
  EXPECT_EQ(y_.values(), first);
  y_.fill(NAN);
  moe.combine(moe.experts(moe.dispatch(moe.mask(moe.keep_plan(), x_.view, y_.view))));
  EXPECT_EQ(y_.values(), first);
}

TEST_F(MoeLayerTest, RefusesAStateThatWasConsumedOrIsAnotherLayers) {
  const Moe moe(pass_, 0, parameters_, exchange_, chunks_, saved_);
  const Moe other(pass_, 1, parameters_, exchange_, chunks_, saved_);
  auto output = planned(moe);
  auto dispatched = moe.dispatch(std::move(output));
  // NOLINTNEXTLINE(bugprone-use-after-move): what a compiler does not refuse, the layer does.
  EXPECT_THROW((void)moe.dispatch(std::move(output)), InternalError);
  EXPECT_THROW((void)other.experts(std::move(dispatched)), InternalError);
  auto moved = other.dispatch_grad(y_.view);
  auto sent = std::move(moved);
  // NOLINTNEXTLINE(bugprone-use-after-move)
  EXPECT_THROW((void)other.experts_backward(std::move(moved)), InternalError);
  EXPECT_THROW((void)moe.experts_backward(std::move(sent)), InternalError);
}

TEST_F(MoeLayerTest, RefusesAnFfnThatDidNotCallTheRouter) {
  const Moe moe(pass_, 0, parameters_, exchange_, chunks_, saved_);
  const auto route = [&] { return moe.route(x_.view, stats_.view, nullptr); };
  const auto forgetful = [](size_t, const std::function<void()>&) {};
  EXPECT_THROW((void)moe.ffn(x_.view, y_.view, route, forgetful), InternalError);
}

}  // namespace
}  // namespace pesc
