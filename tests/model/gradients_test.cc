// ranks: 1
// The backward of the whole model against finite differences of its loss. Routing is recorded once and
// replayed, and dropout masks are functions of counters, so the loss is a smooth function of every parameter.
//
// The loss is float32, so each tensor is perturbed along its own gradient (where the signal is largest) and
// in the elements with the largest gradients, by the five-point stencil. Its step follows the gradient's
// norm: what rounding leaves of the loss weighs 1 / step and would drown small gradients, and the loss is
// curved most where they are large. So the errors stay below a quarter of the tolerance on every kind of
// processor.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/model/rig.h"

namespace pesc {
namespace {

class Differences {
 public:
  Differences(const ModelConfig& model, const PescConfig& pesc, const Layout& layout = {})
      : world_(test_world(session_)), rig_(*world_, model, pesc, five_rows(model), layout) {}

  Rig& rig() { return rig_; }

  // Checks every trainable tensor; returns how many had a gradient.
  int check() {
    rig_.train(&router_replay_);
    int with_gradient = 0;
    const Tensors gradients = rig_.gradients();
    for (const Parameter& p : rig_.decoder->parameters().all()) {
      if (!p.trainable) continue;
      SCOPED_TRACE(p.spec.name);
      with_gradient += check_tensor(p, gradients.at(p.spec.name)) ? 1 : 0;
    }
    return with_gradient;
  }

 private:
  double loss_at(const Parameter& p, const std::vector<float>& base, const std::vector<double>& direction,
                 double step) {
    std::vector<float> moved(base);
    for (size_t i = 0; i < moved.size(); ++i)
      moved[i] = static_cast<float>(static_cast<double>(base[i]) + step * direction[i]);
    copy_from_host(rig_.decoder->stream(), moved.data(), p.master);
    const double loss = rig_.loss(&router_replay_);
    copy_from_host(rig_.decoder->stream(), base.data(), p.master);
    return loss;
  }
  double derivative(const Parameter& p, const std::vector<float>& base, const std::vector<double>& v,
                    double h) {
    return (8 * (loss_at(p, base, v, h) - loss_at(p, base, v, -h)) -
            (loss_at(p, base, v, 2 * h) - loss_at(p, base, v, -2 * h))) /
           (12 * h);
  }
  bool check_tensor(const Parameter& p, const std::vector<float>& gradient) {
    const size_t n = gradient.size();
    std::vector<float> base(n);
    copy_to_host(rig_.decoder->stream(), p.master, base.data());
    double norm = 0;
    for (const float g : gradient) norm += static_cast<double>(g) * static_cast<double>(g);
    norm = std::sqrt(norm);
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return std::abs(gradient[a]) > std::abs(gradient[b]); });
    const double tolerance = 4e-3 * norm + 1e-4;
    const double step = norm < 0.3 ? 0.005 : norm < 2 ? 0.0025 : 0.0008;
    std::vector<double> v(n, 0.0);
    for (const size_t i : {order[0], order[n / 3], order[n - 1]}) {
      std::fill(v.begin(), v.end(), 0.0);
      v[i] = 1;
      EXPECT_NEAR(derivative(p, base, v, step), static_cast<double>(gradient[i]), tolerance)
          << "element " << i;
    }
    if (norm == 0) return false;
    for (size_t i = 0; i < n; ++i) v[i] = static_cast<double>(gradient[i]) / norm;
    EXPECT_NEAR(derivative(p, base, v, step), norm, tolerance) << "along the gradient";
    return norm > 1e-3;
  }

  MpiSession session_;
  std::unique_ptr<Communicator> world_;
  Rig rig_;
  FirstChoices router_replay_;
};

TEST(Gradients, GradientsOfPescWithDropoutAreTheDerivative) {
  Differences d(tiny_llama(), tiny_pesc());
  // Per layer: A and B of seven linears, the router, two tensors of each of the eight experts.
  EXPECT_GE(d.check(), 2 * (14 + 1 + 12));
}
TEST(Gradients, GradientsOfPescOfOddShapesAreTheDerivative) {
  Differences d(odd_llama(), odd_pesc());
  EXPECT_GE(d.check(), 2 * (8 + 1 + 12));
}
TEST(Gradients, AllParametersWithBiasesAndTiedEmbeddings) {
  Differences d(tiny_qwen2(), full_tuning());
  // Biases of k have next to no gradient: softmax does not see what all keys share, but for the rotation.
  EXPECT_GE(d.check(), 2 + 2 * (2 + 7 + 2));
}
TEST(Gradients, AllParametersOfOddShapes) {
  Differences d(odd_llama(), full_tuning());
  EXPECT_EQ(d.check(), 3 + 2 * (2 + 7));
}
TEST(Gradients, AllParametersWithNormsOfQAndK) {
  Differences d(tiny_qwen3(), full_tuning());
  EXPECT_GE(d.check(), 2 + 2 * (2 + 7));
  for (const auto& [name, gradient] : d.rig().gradients()) {
    if (name.find("q_norm") == std::string::npos && name.find("k_norm") == std::string::npos) continue;
    const auto [low, high] = std::minmax_element(gradient.begin(), gradient.end());
    EXPECT_GT(*high - *low, 1e-5F) << name;
  }
}
TEST(Gradients, PescWithNormsOfQAndK) {
  Differences d(tiny_qwen3(), tiny_pesc());
  EXPECT_GE(d.check(), 2 * (14 + 1 + 12));
}
TEST(Gradients, AllParametersWithALayerWithoutRope) {
  Differences d(tiny_smollm3(), full_tuning());
  EXPECT_EQ(d.check(), 2 + 2 * (2 + 7));
}

// Of quantised weights and activations that are not: quantised ones would be step functions.
TEST(Gradients, PescOnWeightsInFp8) {
  Differences d(tiny_llama(), tiny_pesc(), {.frozen = FrozenFormat::kFP8});
  EXPECT_GE(d.check(), 2 * (14 + 1 + 12));
}
TEST(Gradients, PescOnWeightsInNf4) {
  Differences d(odd_llama(), odd_pesc(), {.frozen = FrozenFormat::kNF4});
  EXPECT_GE(d.check(), 2 * (8 + 1 + 12));
}

// In the published code the aux loss is a constant; here it must have a gradient (model/README.md).
TEST(Gradients, TheAuxLossHasAGradient) {
  Differences d(tiny_llama(), tiny_pesc());
  d.rig().ce_scale = 0;
  d.rig().aux_loss_coef = 1;
  d.check();
  const Tensors gradients = d.rig().gradients();
  for (int64_t layer = 0; layer < 2; ++layer) {
    const auto& g = gradients.at(str_cat("model.layers.", layer, ".mlp.moe_adapter.router.weight"));
    EXPECT_GT(std::abs(*std::max_element(g.begin(), g.end())), 1e-3F);
  }
  for (const float b : d.rig().decoder->aux_losses()) EXPECT_GT(b, 0.5F);
}

}  // namespace
}  // namespace pesc
