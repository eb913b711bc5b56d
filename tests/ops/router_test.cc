// The router against a reference in double: choice, weights, statistics, gradients (also by finite
// differences of the op), and the aux loss and its gradient.
#include "ops/router.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numeric>
#include <set>

#include "ops/low_rank.h"
#include "ops/rmsnorm.h"
#include "tests/ops/host_matrix.h"

namespace pesc {
namespace {

struct Shape {
  int64_t tokens, hidden, experts, k, gap;
  int threads;
};
const std::vector<Shape> kShapes = {{1, 1, 1, 1, 0, 1},     {5, 3, 4, 2, 0, 1},     {37, 19, 8, 2, 3, 1},
                                    {64, 33, 7, 7, 1, 1},   {50, 16, 128, 5, 0, 2}, {20, 24, 128, 128, 2, 1},
                                    {3000, 16, 8, 2, 0, 2}, {0, 8, 4, 2, 0, 1}};

// All tensors of a router call, and the calls.
struct Router {
  HostMatrix x, weight, probs, weights, stats;
  std::vector<int32_t> chosen;
  Tensor experts;
  Stream stream;
  Arena scratch;

  explicit Router(const Shape& s)
      : x(HostMatrix::normal(s.tokens, s.hidden, 1, s.gap)),
        weight(HostMatrix::normal(s.experts, s.hidden, 2, s.gap, 0.7F)),
        probs(s.tokens, s.experts, s.gap, NAN),
        weights(s.tokens, s.k, s.gap, NAN),
        stats(2, s.experts),
        chosen(static_cast<size_t>(s.tokens * s.k), -1),
        experts(tensor_of(chosen.data(), s.tokens, s.k)),
        stream(Device{.threads = s.threads}),
        scratch("router", Device{}, router_scratch_bytes(Device{}, s.tokens, s.experts, s.hidden)) {}

  void forward(Routing routing = Routing::kTopK) {
    router_forward(stream, {x.view, weight.view, probs.view, experts, weights.view, stats.view, routing},
                   scratch);
    EXPECT_EQ(scratch.used(), 0);
  }
  // `input`: x, or with rstd and norm what they make x of.
  void backward(const HostMatrix& dweights, const HostMatrix& aux, const HostMatrix& dweight,
                const HostMatrix& dx) {
    backward(dweights, aux, dweight, dx, x.view, {}, {});
  }
  void backward(const HostMatrix& dweights, const HostMatrix& aux, const HostMatrix& dweight,
                const HostMatrix& dx, const Tensor& input, const Tensor& rstd, const Tensor& norm) {
    const HostMatrix dlogits(x.view.rows, weight.view.rows, 1, NAN);
    router_backward(stream,
                    {input, weight.view, probs.view, experts, weights.view, dweights.view, aux.view,
                     dweight.view, dlogits.view, rstd, norm},
                    scratch);
    EXPECT_EQ(scratch.used(), 0);
    add_low_rank_term(stream, {dlogits.view, weight.view}, dx.view);
    EXPECT_TRUE(dlogits.gaps_untouched());
  }
};

struct Reference {
  std::vector<double> logits, probs, weights;
  std::vector<int32_t> experts;
};

// With `replay` the choice is taken from the router.
Reference reference(const Router& r, bool replay = false) {
  const int64_t tokens = r.x.view.rows;
  const int64_t count = r.weight.view.rows;
  const int64_t k = r.experts.cols;
  Reference out;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<double> row(static_cast<size_t>(count));
    for (int64_t e = 0; e < count; ++e)
      for (int64_t h = 0; h < r.x.view.cols; ++h)
        row[static_cast<size_t>(e)] += static_cast<double>(r.x(t, h)) * r.weight(e, h);
    std::vector<int32_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return row[static_cast<size_t>(a)] > row[static_cast<size_t>(b)];
    });
    if (replay) order.assign(r.chosen.begin() + t * k, r.chosen.begin() + (t + 1) * k);
    double all = 0;
    double kept = 0;
    for (double v : row) all += std::exp(v);
    for (int64_t j = 0; j < k; ++j) kept += std::exp(row[static_cast<size_t>(order[static_cast<size_t>(j)])]);
    for (int64_t j = 0; j < k; ++j) {
      const int32_t e = order[static_cast<size_t>(j)];
      out.experts.push_back(e);
      out.weights.push_back(std::exp(row[static_cast<size_t>(e)]) / kept);
    }
    for (double v : row) out.probs.push_back(std::exp(v) / all);
    out.logits.insert(out.logits.end(), row.begin(), row.end());
  }
  return out;
}

TEST(Router, ForwardMatchesTheReference) {
  for (const Shape& s : kShapes) {
    Router r(s);
    r.stats.fill(3);
    r.forward();
    const Reference want = reference(r);
    EXPECT_EQ(r.chosen, want.experts) << s.experts;
    EXPECT_LT(relative_error(r.probs.values(), want.probs), 1e-5);
    EXPECT_LT(relative_error(r.weights.values(), want.weights), 1e-5);
    EXPECT_TRUE(r.probs.gaps_untouched() && r.weights.gaps_untouched());
    std::vector<double> stats(static_cast<size_t>(2 * s.experts), 3);
    for (int32_t e : want.experts) stats[static_cast<size_t>(e)] += 1;
    for (size_t i = 0; i < want.probs.size(); ++i)
      stats[static_cast<size_t>(s.experts) + i % static_cast<size_t>(s.experts)] += want.probs[i];
    EXPECT_LT(relative_error(r.stats.values(), stats), 1e-5);
    for (int64_t e = 0; e < s.experts; ++e) EXPECT_EQ(r.stats(0, e), stats[static_cast<size_t>(e)]);
  }
}

TEST(Router, TiesGoToTheLowerExpert) {
  Router r({3, 2, 6, 4, 0, 1});
  // Logits of every token: 1 2 1 2 1 2 times a positive number.
  for (int64_t e = 0; e < 6; ++e) r.weight(e, 0) = r.weight(e, 1) = e % 2 == 0 ? 1.0F : 2.0F;
  r.x.fill(0.5F);
  r.forward();
  for (int64_t t = 0; t < 3; ++t)
    EXPECT_EQ(std::vector<int32_t>(r.chosen.begin() + t * 4, r.chosen.begin() + t * 4 + 4),
              (std::vector<int32_t>{1, 3, 5, 0}));
  r.weight.fill(0);
  r.forward();
  EXPECT_EQ(std::vector<int32_t>(r.chosen.begin(), r.chosen.begin() + 4), (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(r.weights(0, 0), 0.25F);
  EXPECT_FLOAT_EQ(r.probs(0, 5), 1.0F / 6);
}

TEST(Router, LargeLogitsDoNotOverflow) {
  Router r({4, 5, 8, 2, 0, 1});
  for (float& v : r.weight.data) v *= 1000;
  r.forward();
  for (int64_t t = 0; t < 4; ++t) {
    EXPECT_NEAR(r.weights(t, 0) + r.weights(t, 1), 1, 1e-6);
    EXPECT_GE(r.weights(t, 0), r.weights(t, 1));
  }
}

TEST(Router, NonFiniteLogitsKeepADefinedChoice) {
  const Shape s{4, 3, 8, 3, 0, 1};
  Router r(s);
  r.x(1, 0) = NAN;
  r.x(2, 1) = INFINITY;
  r.weight(5, 2) = NAN;  // expert 5 has no number for any token
  r.forward();
  Router again(s);
  again.x.data = r.x.data;
  again.weight.data = r.weight.data;
  again.forward();
  EXPECT_EQ(r.chosen, again.chosen);
  for (int64_t t = 0; t < 4; ++t) {
    const std::set<int32_t> distinct(r.chosen.begin() + t * 3, r.chosen.begin() + t * 3 + 3);
    EXPECT_EQ(distinct.size(), 3U);
    EXPECT_GE(*distinct.begin(), 0);
    EXPECT_LT(*distinct.rbegin(), 8);
    EXPECT_TRUE(t == 1 || !distinct.contains(5)) << "a number ranks above NaN";
  }
  // Nothing but NaN: the lowest experts.
  EXPECT_EQ(std::vector<int32_t>(r.chosen.begin() + 3, r.chosen.begin() + 6),
            (std::vector<int32_t>{0, 1, 2}));
}

TEST(Router, ReplayKeepsTheRecordedChoice) {
  Router r({6, 9, 5, 2, 0, 1});
  for (size_t i = 0; i < r.chosen.size(); ++i) r.chosen[i] = static_cast<int32_t>(i % 2 == 0 ? 4 : i % 4);
  const std::vector<int32_t> recorded = r.chosen;
  r.forward(Routing::kReplay);
  EXPECT_EQ(r.chosen, recorded);
  const Reference want = reference(r, true);
  EXPECT_LT(relative_error(r.weights.values(), want.weights), 1e-5);
  EXPECT_EQ(r.stats(0, 4), 6.0F);
  r.chosen[3] = 5;
  EXPECT_THROW(r.forward(Routing::kReplay), InternalError);
}

TEST(Router, ThreadsDoNotChangeTheChoiceOrTheSums) {
  Router one({3000, 16, 8, 2, 0, 1});
  Router two({3000, 16, 8, 2, 0, 2});
  one.forward();
  two.forward();
  EXPECT_EQ(one.chosen, two.chosen);
  EXPECT_LT(relative_error(two.stats.values(), one.stats.values()), 1e-6);
}

// loss = sum c w + sum_t sum_i g_i p_(t,i), with the choice held.
double scalar_loss(const std::vector<double>& weights, const std::vector<double>& probs,
                   const HostMatrix& dweights, const HostMatrix& aux) {
  const std::vector<double> c = dweights.values();
  double loss = 0;
  for (size_t i = 0; i < weights.size(); ++i) loss += c[i] * weights[i];
  const auto experts = static_cast<size_t>(aux.view.cols);
  for (size_t i = 0; i < probs.size(); ++i) loss += aux.data[i % experts] * probs[i];
  return loss;
}

// d loss / d value by a central difference.
double difference(float& value, float step, const std::function<double()>& loss) {
  const float kept = value;
  value = kept + step;
  const float above = value;
  const double up = loss();
  value = kept - step;
  const double down = loss();
  const double width = static_cast<double>(above) - value;
  value = kept;
  return (up - down) / width;
}

TEST(Router, BackwardMatchesFiniteDifferences) {
  for (const Shape& s :
       {Shape{5, 3, 4, 2, 0, 1}, {7, 6, 8, 3, 2, 1}, {4, 5, 3, 3, 0, 2}, {3, 4, 6, 1, 1, 1}}) {
    Router r(s);
    r.forward();
    const HostMatrix dweights = HostMatrix::normal(s.tokens, s.k, 5, s.gap);
    const HostMatrix aux = HostMatrix::normal(1, s.experts, 6);
    HostMatrix dweight(s.experts, s.hidden, s.gap, 2);  // both are added to
    HostMatrix dx(s.tokens, s.hidden, s.gap, -3);
    r.backward(dweights, aux, dweight, dx);
    EXPECT_TRUE(dweight.gaps_untouched() && dx.gaps_untouched());

    const auto exact = [&] {
      const Reference want = reference(r, true);
      return scalar_loss(want.weights, want.probs, dweights, aux);
    };
    const auto op = [&] {
      r.forward(Routing::kReplay);
      return scalar_loss(r.weights.values(), r.probs.values(), dweights, aux);
    };
    for (auto [input, gradient, start] : {std::tuple{&r.weight, &dweight, 2.0}, {&r.x, &dx, -3.0}}) {
      std::vector<double> by_reference;
      std::vector<double> by_op;
      for (int64_t i = 0; i < input->view.rows; ++i) {
        for (int64_t j = 0; j < input->view.cols; ++j) {
          by_reference.push_back(start + difference((*input)(i, j), 1e-3F, exact));
          by_op.push_back(start + difference((*input)(i, j), 1e-2F, op));
        }
      }
      EXPECT_LT(relative_error(gradient->values(), by_reference), 2e-6);
      EXPECT_LT(relative_error(gradient->values(), by_op), 1e-3);
    }
  }
}

TEST(Router, BackwardOfNoTokensAddsNothing) {
  Router r({0, 4, 3, 2, 0, 1});
  HostMatrix dweight(3, 4, 0, 7);
  r.backward(HostMatrix(0, 2), HostMatrix(1, 3, 0, 1), dweight, HostMatrix(0, 4));
  for (float v : dweight.data) EXPECT_EQ(v, 7.0F);
}

struct AuxLoss {
  float loss = NAN;
  HostMatrix gradient;
  AuxLoss(const HostMatrix& stats, double tokens, int64_t k, double coef)
      : gradient(1, stats.view.cols, 0, NAN) {
    Stream stream(Device{});
    router_aux_loss(stream, stats.view, tokens, k, coef, tensor_of(&loss, 1, 1), gradient.view);
  }
};

TEST(AuxLoss, IsOneWhenBalancedAndTheNumberOfExpertsWhenCollapsed) {
  // Token t prefers expert t, by symmetry all experts alike.
  for (int64_t k : {1, 2, 4}) {
    Router r({4, 4, 4, k, 0, 1});
    r.x.fill(0);
    r.weight.fill(0);
    for (int64_t i = 0; i < 4; ++i) {
      r.x(i, i) = 1;
      for (int64_t e = 0; e < 4; ++e)
        r.weight(e, i) = static_cast<float>((e - i + 4) % 4 == 0 ? 3 : (e - i + 4) % 4 == 1 ? 2 : 0);
    }
    r.forward();
    EXPECT_NEAR(AuxLoss(r.stats, 4, k, 1).loss, 1, 1e-6) << k;
  }
  Router r({6, 2, 5, 1, 0, 1});
  r.x.fill(1);
  r.weight.fill(0);
  r.weight(3, 0) = 50;
  r.forward();
  EXPECT_NEAR(AuxLoss(r.stats, 6, 1, 1).loss, 5, 1e-5);
}

TEST(AuxLoss, GradientIsNotZeroAndIsThatOfTheLoss) {
  const Shape s{12, 3, 4, 2, 0, 1};
  constexpr double kCoef = 0.5;
  Router r(s);
  r.forward();
  const AuxLoss aux(r.stats, 12, s.k, kCoef);
  HostMatrix dweight(s.experts, s.hidden);
  HostMatrix dx(s.tokens, s.hidden);
  r.backward(HostMatrix(s.tokens, s.k), aux.gradient, dweight, dx);
  double largest = 0;
  for (double g : dweight.values()) largest = std::max(largest, std::abs(g));
  EXPECT_GT(largest, 1e-3);

  // The shares carry no gradient: the choice is held, and with it the assignments.
  const auto exact = [&] {
    const Reference want = reference(r, true);
    double total = 0;
    for (int64_t e = 0; e < s.experts; ++e) {
      const auto assigned = std::count(r.chosen.begin(), r.chosen.end(), static_cast<int32_t>(e));
      double prob = 0;
      for (int64_t t = 0; t < s.tokens; ++t) prob += want.probs[static_cast<size_t>(t * s.experts + e)];
      total += static_cast<double>(assigned) / static_cast<double>(s.tokens * s.k) * prob / 12;
    }
    return kCoef * static_cast<double>(s.experts) * total;
  };
  EXPECT_NEAR(kCoef * aux.loss, exact(), 1e-6);
  EXPECT_GT(aux.loss, 1.0F);
  const auto op = [&] {
    r.stats.fill(0);
    r.forward(Routing::kReplay);
    return kCoef * AuxLoss(r.stats, 12, s.k, kCoef).loss;
  };
  for (auto [input, gradient] : {std::pair{&r.weight, &dweight}, {&r.x, &dx}}) {
    std::vector<double> by_reference;
    std::vector<double> by_op;
    for (int64_t i = 0; i < input->view.rows; ++i) {
      for (int64_t j = 0; j < input->view.cols; ++j) {
        by_reference.push_back(difference((*input)(i, j), 1e-3F, exact));
        by_op.push_back(difference((*input)(i, j), 2e-2F, op));
      }
    }
    EXPECT_LT(relative_error(gradient->values(), by_reference), 1e-5);
    EXPECT_LT(relative_error(gradient->values(), by_op), 5e-3);
  }
}

TEST(AuxLoss, WithoutTokensLossAndGradientAreZero) {
  const AuxLoss none(HostMatrix(2, 3), 0, 2, 0.01);
  EXPECT_EQ(none.loss, 0.0F);
  for (float g : none.gradient.data) EXPECT_EQ(g, 0.0F);
}

// What RMSNorm made x of stands for x, bit for bit.
TEST(Router, BackwardFromBeforeTheNorm) {
  Router r({37, 20, 8, 2, 3, 2});
  const HostMatrix before = HostMatrix::normal(37, 20, 11, 1);
  const HostMatrix norm = HostMatrix::normal(1, 20, 12);
  const HostMatrix rstd(1, 37);
  rmsnorm_forward(r.stream, {before.view, {}, {}, norm.view, 1e-5F, r.x.view, rstd.view});
  r.forward();
  const HostMatrix dweights = HostMatrix::normal(37, 2, 5);
  const HostMatrix aux = HostMatrix::normal(1, 8, 6);
  const HostMatrix want(8, 20, 3, 2), dweight(8, 20, 3, 2), dx(37, 20), same(37, 20);
  r.backward(dweights, aux, want, dx);
  r.backward(dweights, aux, dweight, same, before.view, rstd.view, norm.view);
  EXPECT_EQ(dweight.values(), want.values());
  EXPECT_EQ(same.values(), dx.values());
  EXPECT_NE(want.values(), HostMatrix(8, 20, 0, 2).values());
}

}  // namespace
}  // namespace pesc
