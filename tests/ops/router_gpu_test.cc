// The router and the aux loss on the GPU against their CPU twins.
#include <gtest/gtest.h>

#include <optional>

#include "ops/low_rank.h"
#include "ops/router.h"
#include "tests/ops/gpu_twin.h"

namespace pesc {
namespace {

struct Shape {
  int64_t tokens, hidden, experts, k, gap;
};
const Shape kShapes[] = {{64, 64, 8, 2, 0}, {33, 130, 5, 3, 2},  {7, 65, 3, 3, 3},   {1, 8, 1, 1, 0},
                         {0, 64, 8, 2, 0},  {2500, 96, 8, 2, 8}, {19, 40, 17, 4, 0}, {130, 256, 64, 6, 0}};

// As float32 whatever the type: exact copies of small integers.
HostMatrix floats(const std::vector<int32_t>& values, int64_t rows, int64_t cols) {
  HostMatrix out(rows, cols);
  for (size_t i = 0; i < values.size(); ++i) out.data[i] = static_cast<float>(values[i]);
  return out;
}

class RouterGpu : public GpuTwin {
 protected:
  struct Forward {
    HostMatrix x, weight, probs, weights, stats;
    std::vector<int32_t> chosen;
    Forward(const Shape& s, DType t)
        : x(rounded(HostMatrix::normal(s.tokens, s.hidden, 1, s.gap), t)),
          weight(
              HostMatrix::normal(s.experts, s.hidden, 2, 0, 1.0F / std::sqrt(static_cast<float>(s.hidden)))),
          probs(s.tokens, s.experts),
          weights(s.tokens, s.k),
          stats(2, s.experts, 0, 3),
          chosen(static_cast<size_t>(s.tokens * s.k), -1) {}
    [[nodiscard]] Tensor experts() { return tensor_of(chosen.data(), x.view.rows, weights.view.cols); }
  };

  // Probs, weights, stats and experts of the GPU.
  Outputs forward(const Shape& s, DType t, const HostMatrix& x, const HostMatrix& weight,
                  const std::vector<int32_t>& before, Routing routing) {
    const OnGpu gx(gpu(), x, t), gweight(gpu(), weight), gprobs(gpu(), HostMatrix(s.tokens, s.experts));
    const OnGpu gweights(gpu(), HostMatrix(s.tokens, s.k)), gstats(gpu(), HostMatrix(2, s.experts, 0, 3));
    const ArrayOnGpu<int32_t> gexperts(gpu(), before, s.tokens, s.k);
    const int64_t bytes = router_scratch_bytes(gpu().device(), s.tokens, s.experts, s.hidden, t);
    Arena memory = scratch(bytes);
    router_forward(gpu(),
                   {gx.view, gweight.view, gprobs.view, gexperts.view, gweights.view, gstats.view, routing},
                   memory);
    EXPECT_LE(memory.peak(), bytes);
    EXPECT_EQ(memory.used(), 0);
    return {gprobs.host(), gweights.host(), gstats.host(), floats(gexperts.host(), s.tokens, s.k)};
  }
};

// The CPU gets the same rounded x, so float32 bounds hold for both element types.
TEST_F(RouterGpu, ForwardMatchesTheCpu) {
  for (const DType t : {DType::kF32, DType::kBF16}) {
    for (const Shape& s : kShapes) {
      Forward want(s, t);
      Arena host = host_scratch(router_scratch_bytes(Device{}, s.tokens, s.experts, s.hidden));
      for (const Routing routing : {Routing::kTopK, Routing::kReplay}) {
        // Replayed: the choice turned round, so that it is not what the GPU would choose.
        std::vector<int32_t> before = want.chosen;
        if (routing == Routing::kReplay) std::reverse(before.begin(), before.end());
        want.chosen = before;
        want.stats.fill(3);
        router_forward(cpu,
                       {want.x.view, want.weight.view, want.probs.view, want.experts(), want.weights.view,
                        want.stats.view, routing},
                       host);
        compare(
            str_cat(shape_name(t, s.tokens, s.hidden, s.gap), ", ", s.experts, " experts"),
            [&] { return forward(s, t, want.x, want.weight, before, routing); },
            {want.probs, want.weights, want.stats, floats(want.chosen, s.tokens, s.k)}, 1e-5);
      }
    }
  }
}

TEST_F(RouterGpu, TiesGoToTheLowerExpertAndNotANumberIsLast) {
  const Shape s{3, 4, 6, 3, 0};
  HostMatrix x(3, 4), weight(6, 4);
  for (int64_t t = 0; t < 3; ++t) x(t, 0) = static_cast<float>(t);  // token 0: all logits are equal
  const float logits[] = {1, 2, 2, 3, 3, 3};
  for (int64_t e = 0; e < 6; ++e) weight(e, 0) = logits[e];
  const auto choice = [&] {
    return forward(s, DType::kF32, x, weight, std::vector<int32_t>(9, -1), Routing::kTopK)[3].data;
  };
  EXPECT_EQ(choice(), (std::vector<float>{0, 1, 2, 3, 4, 5, 3, 4, 5}));
  // 0 * NaN: expert 3 is not a number for any token.
  weight(3, 0) = NAN;
  EXPECT_EQ(choice(), (std::vector<float>{0, 1, 2, 4, 5, 1, 4, 5, 1}));
}

TEST_F(RouterGpu, BackwardMatchesTheCpu) {
  for (const DType t : {DType::kF32, DType::kBF16}) {
    for (const Shape& s : kShapes) {
      Forward f(s, t);
      Arena host = host_scratch(router_scratch_bytes(Device{}, s.tokens, s.experts, s.hidden));
      router_forward(cpu, {f.x.view, f.weight.view, f.probs.view, f.experts(), f.weights.view, f.stats.view},
                     host);
      const HostMatrix dweights = HostMatrix::normal(s.tokens, s.k, 5);
      const HostMatrix aux = HostMatrix::normal(1, s.experts, 6);
      const HostMatrix before = rounded(HostMatrix::normal(s.tokens, s.hidden, 7, s.gap), t);
      // The router's input as it is, and as what RMSNorm made it of, with a weight of either type.
      for (const std::optional<DType> norm :
           {std::optional<DType>(), std::optional(DType::kF32), std::optional(t)}) {
        const HostMatrix rstd = HostMatrix::normal(1, s.tokens, 8);
        const HostMatrix scale = rounded(HostMatrix::normal(1, s.hidden, 9), norm.value_or(DType::kF32));
        HostMatrix dweight(s.experts, s.hidden, 0, 0.5F), dx = before, dlogits(s.tokens, s.experts);
        router_backward(
            cpu,
            {f.x.view, f.weight.view, f.probs.view, f.experts(), f.weights.view, dweights.view, aux.view,
             dweight.view, dlogits.view, norm ? rstd.view : Tensor{}, norm ? scale.view : Tensor{}},
            host);
        add_low_rank_term(cpu, {dlogits.view, f.weight.view}, dx.view);
        const auto run = [&]() -> Outputs {
          const OnGpu gx(gpu(), f.x, t), gweight(gpu(), f.weight), gprobs(gpu(), f.probs),
              gweights(gpu(), f.weights);
          const OnGpu gdweights(gpu(), dweights), gaux(gpu(), aux), gdx(gpu(), before, t);
          const OnGpu gdweight(gpu(), HostMatrix(s.experts, s.hidden, 0, 0.5F));
          const ArrayOnGpu<int32_t> gexperts(gpu(), f.chosen, s.tokens, s.k);
          const OnGpu gdlogits(gpu(), HostMatrix(s.tokens, s.experts, 0, NAN));
          const OnGpu grstd(gpu(), rstd), gscale(gpu(), scale, norm.value_or(DType::kF32));
          const int64_t bytes = router_scratch_bytes(gpu().device(), s.tokens, s.experts, s.hidden, t);
          Arena memory = scratch(bytes);
          router_backward(
              gpu(),
              {gx.view, gweight.view, gprobs.view, gexperts.view, gweights.view, gdweights.view, gaux.view,
               gdweight.view, gdlogits.view, norm ? grstd.view : Tensor{}, norm ? gscale.view : Tensor{}},
              memory);
          EXPECT_LE(memory.peak(), bytes);
          add_low_rank_term(gpu(), {gdlogits.view, gweight.view}, gdx.view);
          return {gdweight.host(), gdx.host(), gdlogits.host()};
        };
        compare(str_cat(shape_name(t, s.tokens, s.hidden, s.gap), ", ", s.experts, " experts",
                        norm ? ", before the norm" : ""),
                run, {dweight, dx, dlogits}, bound(t));
      }
    }
  }
}

TEST_F(RouterGpu, AuxLossMatchesTheCpu) {
  for (const double tokens : {0.0, 37.0}) {
    HostMatrix stats = HostMatrix::normal(2, 8, 1);
    for (float& v : stats.data) v = std::abs(v) * 10;
    HostMatrix loss(1, 1), grad(1, 8);
    router_aux_loss(cpu, stats.view, tokens, 2, 0.01, loss.view, grad.view);
    const auto run = [&]() -> Outputs {
      const OnGpu gstats(gpu(), stats), gloss(gpu(), HostMatrix(1, 1)), ggrad(gpu(), HostMatrix(1, 8));
      router_aux_loss(gpu(), gstats.view, tokens, 2, 0.01, gloss.view, ggrad.view);
      return {gloss.host(), ggrad.host()};
    };
    compare(str_cat(tokens, " tokens"), run, {loss, grad}, 1e-6);
  }
}

}  // namespace
}  // namespace pesc
