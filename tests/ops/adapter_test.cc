// The adapter experts against a reference in double: the sum over a row's experts, and gradients as finite
// differences of that reference (whole for small shapes, along random directions for all) and of the op.
#include "ops/adapter.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>

#include "tests/ops/host_matrix.h"

namespace pesc {
namespace {

enum class Spread { kUniform, kOneExpert, kFirstExpertUnused };

struct Shape {
  int64_t rows, hidden, dim, experts;  // experts here
  int64_t all_experts, k, gap;         // a row chooses k of all_experts; only those below `experts` are here
  Spread spread = Spread::kUniform;
  int threads = 1;
};

constexpr float kScale = 0.6F;

struct Adapter {
  Shape shape;
  std::vector<int64_t> offsets;
  std::vector<int32_t> row, choice;
  HostMatrix f, weights, down, up, pre_act, out;
  Stream stream;
  Arena scratch;

  explicit Adapter(const Shape& s) : Adapter(s, choose(s)) {}

  [[nodiscard]] AdapterGroups groups() const { return {offsets, row, choice}; }
  [[nodiscard]] AdapterForward forward_args() const {
    return {groups(), f.view, weights.view, down.view, up.view, kScale, pre_act.view, out.view};
  }
  void forward() {
    out.fill(0);
    add();
  }
  void add() {
    adapter_forward(stream, forward_args(), scratch);
    EXPECT_EQ(scratch.used(), 0);
  }
  void backward(const HostMatrix& dout, const HostMatrix& df, const HostMatrix& dweights,
                const HostMatrix& ddown, const HostMatrix& dup) {
    adapter_backward(stream,
                     {groups(), f.view, weights.view, down.view, up.view, kScale, pre_act.view, dout.view,
                      df.view, dweights.view, ddown.view, dup.view},
                     scratch);
    EXPECT_EQ(scratch.used(), 0);
  }

  // sum_r sum_h dout out, in double, straight from the definition.
  [[nodiscard]] std::vector<double> reference() const {
    const Shape& s = shape;
    std::vector<double> result(static_cast<size_t>(s.rows * s.hidden));
    for (int64_t e = 0; e < s.experts; ++e) {
      for (auto i = static_cast<size_t>(offsets[static_cast<size_t>(e)]);
           i < static_cast<size_t>(offsets[static_cast<size_t>(e) + 1]); ++i) {
        const double w = weights.data[static_cast<size_t>(choice[i])];
        for (int64_t c = 0; c < s.dim; ++c) {
          double h = 0;
          for (int64_t j = 0; j < s.hidden; ++j)
            h += static_cast<double>(f(row[i], j)) * down(e * s.dim + c, j);
          const double g = 0.5 * h * (1 + std::erf(h / std::sqrt(2.0)));
          for (int64_t j = 0; j < s.hidden; ++j)
            result[static_cast<size_t>(row[i] * s.hidden + j)] += kScale * w * g * up(e * s.hidden + j, c);
        }
      }
    }
    return result;
  }

 private:
  struct Choice {
    std::vector<int64_t> offsets;
    std::vector<int32_t> row, choice;
  };

  static Choice choose(const Shape& s) {
    std::mt19937 random(11);
    std::vector<std::vector<std::pair<int32_t, int32_t>>> lists(static_cast<size_t>(s.all_experts));
    for (int64_t r = 0; r < s.rows; ++r) {
      std::set<size_t> used;
      for (int64_t j = 0; j < s.k; ++j) {
        size_t e = 0;
        do {
          e = random() % static_cast<size_t>(s.all_experts);
          if (s.spread == Spread::kOneExpert && j == 0) e = 1;
          if (s.spread == Spread::kFirstExpertUnused && e == 0) e = 1;
        } while (!used.insert(e).second);
        lists[e].emplace_back(static_cast<int32_t>(r), static_cast<int32_t>(r * s.k + j));
      }
    }
    Choice out;
    out.offsets.push_back(0);
    for (int64_t e = 0; e < s.experts; ++e) {
      for (auto [r, at] : lists[static_cast<size_t>(e)]) {
        out.row.push_back(r);
        out.choice.push_back(at);
      }
      out.offsets.push_back(static_cast<int64_t>(out.row.size()));
    }
    return out;
  }

  Adapter(const Shape& s, const Choice& chosen)
      : shape(s),
        offsets(chosen.offsets),
        row(chosen.row),
        choice(chosen.choice),
        f(HostMatrix::normal(s.rows, s.hidden, 1, s.gap)),
        weights(HostMatrix::normal(s.rows, s.k, 2)),
        down(HostMatrix::normal(s.experts * s.dim, s.hidden, 3, 0,
                                1.0F / std::sqrt(static_cast<float>(s.hidden)))),
        up(HostMatrix::normal(s.experts * s.hidden, s.dim, 4)),
        pre_act(static_cast<int64_t>(row.size()), s.dim, 0, NAN),
        out(s.rows, s.hidden, s.gap),
        stream(Device{.threads = s.threads}),
        scratch("adapter", Device{}, adapter_scratch_bytes(Device{}, s.rows, s.k, s.hidden, s.dim)) {}
};

std::vector<Shape> shapes() {
  return {{1, 1, 1, 1, 1, 1, 0},
          {7, 5, 3, 3, 5, 2, 2},
          {6, 4, 2, 3, 3, 3, 1},                                    // every row at every expert
          {0, 8, 4, 3, 3, 2, 0},                                    // no rows
          {9, 6, 4, 0, 4, 2, 0},                                    // no experts here
          {40, 33, 17, 4, 8, 2, 3, Spread::kFirstExpertUnused, 2},  // an expert without rows
          {1300, 8, 4, 2, 2, 2, 0, Spread::kUniform, 2},            // several blocks, contiguous
          {1300, 9, 5, 4, 8, 2, 1, Spread::kOneExpert},             // all at one expert
          {1500, 6, 16, 3, 8, 1, 0, Spread::kUniform, 2}};
}

TEST(Adapter, ForwardMatchesTheReference) {
  for (const Shape& s : shapes()) {
    Adapter a(s);
    a.forward();
    const std::vector<double> want = a.reference();
    EXPECT_LT(relative_error(a.out.values(), want), 1e-5) << s.rows;
    EXPECT_TRUE(a.out.gaps_untouched());
    a.add();
    std::vector<double> twice = want;
    for (double& v : twice) v *= 2;
    EXPECT_LT(relative_error(a.out.values(), twice), 1e-5) << s.rows;
  }
}

TEST(Adapter, RecomputedPreActivationIsBitwiseTheSame) {
  for (const Shape& s : shapes()) {
    Adapter a(s);
    a.forward();
    const std::vector<float> kept = a.pre_act.data;
    const std::vector<float> out = a.out.data;
    a.pre_act.fill(NAN);
    adapter_pre_act(a.stream, a.forward_args(), a.scratch);
    EXPECT_EQ(a.pre_act.data, kept);
    EXPECT_EQ(a.out.data, out);
  }
}

TEST(Adapter, WithUpZeroTheOutputIsZero) {
  Adapter a(shapes()[1]);
  a.up.fill(0);
  a.forward();
  for (double v : a.out.values()) EXPECT_EQ(v, 0.0);
}

// <dout, out> in double.
double scalar_loss(const HostMatrix& dout, const std::vector<double>& out) {
  const std::vector<double> c = dout.values();
  double loss = 0;
  for (size_t i = 0; i < out.size(); ++i) loss += c[i] * out[i];
  return loss;
}

struct Gradients {
  HostMatrix dout, df, dweights, ddown, dup;
  explicit Gradients(const Shape& s)
      : dout(HostMatrix::normal(s.rows, s.hidden, 7, s.gap)),
        df(s.rows, s.hidden, s.gap, NAN),
        dweights(s.rows, s.k, 0, NAN),
        ddown(s.experts * s.dim, s.hidden, 0, 2),  // these two are added to
        dup(s.experts * s.hidden, s.dim, 0, -1) {}
  void run(Adapter& a) { a.backward(dout, df, dweights, ddown, dup); }
};

struct Slope {
  HostMatrix* input;
  HostMatrix* gradient;
  double start;  // what the gradient held before
};
std::vector<Slope> slopes(Adapter& a, Gradients& g) {
  return {{&a.f, &g.df, 0}, {&a.weights, &g.dweights, 0}, {&a.down, &g.ddown, 2}, {&a.up, &g.dup, -1}};
}

TEST(Adapter, BackwardMatchesFiniteDifferences) {
  for (const Shape& s : {Shape{1, 1, 1, 1, 1, 1, 0}, Shape{7, 5, 3, 3, 5, 2, 2}, Shape{6, 4, 2, 3, 3, 3, 1},
                         Shape{8, 3, 4, 4, 4, 2, 0, Spread::kFirstExpertUnused}}) {
    Adapter a(s);
    a.forward();
    Gradients g(s);
    g.run(a);
    EXPECT_TRUE(g.df.gaps_untouched());
    const auto exact = [&] { return scalar_loss(g.dout, a.reference()); };
    const auto op = [&] {
      a.forward();
      return scalar_loss(g.dout, a.out.values());
    };
    for (const Slope& slope : slopes(a, g)) {
      std::vector<double> by_reference;
      std::vector<double> by_op;
      for (int64_t i = 0; i < slope.input->view.rows; ++i) {
        for (int64_t j = 0; j < slope.input->view.cols; ++j) {
          const auto difference = [&](float step, const std::function<double()>& loss) {
            float& value = (*slope.input)(i, j);
            const float kept = value;
            value = kept + step;
            const float above = value;
            const double up = loss();
            value = kept - step;
            const double down = loss();
            const double width = static_cast<double>(above) - value;
            value = kept;
            return slope.start + (up - down) / width;
          };
          by_reference.push_back(difference(1e-3F, exact));
          by_op.push_back(difference(1e-2F, op));
        }
      }
      EXPECT_LT(relative_error(slope.gradient->values(), by_reference), 1e-5);
      EXPECT_LT(relative_error(slope.gradient->values(), by_op), 1e-3);
    }
  }
}

TEST(Adapter, BackwardAlongRandomDirections) {
  for (const Shape& s : shapes()) {
    Adapter a(s);
    a.forward();
    Gradients g(s);
    g.run(a);
    for (const Slope& slope : slopes(a, g)) {
      const HostMatrix kept = *slope.input;
      const HostMatrix direction =
          HostMatrix::normal(kept.view.rows, kept.view.cols, 21, kept.view.ld - kept.view.cols);
      constexpr float kStep = 1.0F / 1024;
      const auto moved = [&](float by) {
        for (int64_t i = 0; i < kept.view.rows; ++i)
          for (int64_t j = 0; j < kept.view.cols; ++j)
            (*slope.input)(i, j) = kept(i, j) + by * direction(i, j);
        return scalar_loss(g.dout, a.reference());
      };
      const double want = (moved(kStep) - moved(-kStep)) / (2 * kStep);
      slope.input->data = kept.data;
      double got = 0;
      double size = 0;
      for (int64_t i = 0; i < kept.view.rows; ++i) {
        for (int64_t j = 0; j < kept.view.cols; ++j) {
          const double d = ((*slope.gradient)(i, j) - slope.start) * direction(i, j);
          got += d;
          size += d * d;
        }
      }
      EXPECT_NEAR(got, want, 1e-3 * std::sqrt(size) + 1e-12) << s.rows << " rows";
    }
  }
}

TEST(Adapter, ChoicesOfRemoteExpertsGetNoGradient) {
  Adapter a({7, 5, 3, 3, 5, 2, 2});
  a.forward();
  Gradients g(a.shape);
  g.run(a);
  const std::set<int32_t> here(a.choice.begin(), a.choice.end());
  ASSERT_LT(here.size(), 14U);
  for (int32_t i = 0; i < 14; ++i) {
    if (here.contains(i)) {
      EXPECT_NE(g.dweights.data[static_cast<size_t>(i)], 0.0F);
    } else {
      EXPECT_EQ(g.dweights.data[static_cast<size_t>(i)], 0.0F);
    }
  }
}

TEST(Adapter, ExpertsWithoutRowsKeepTheirGradients) {
  Adapter a({8, 3, 4, 4, 4, 2, 0, Spread::kFirstExpertUnused});
  ASSERT_EQ(a.offsets[1], 0);
  a.forward();
  Gradients g(a.shape);
  g.run(a);
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t j = 0; j < 3; ++j) EXPECT_EQ(g.ddown(i, j), 2.0F);
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t j = 0; j < 4; ++j) EXPECT_EQ(g.dup(i, j), -1.0F);
}

TEST(Adapter, ScratchIsExactlyWhatIsUsedWhateverTheImbalance) {
  for (const Shape& s : shapes()) {
    Adapter a(s);
    a.forward();
    Gradients g(s);
    g.run(a);
    EXPECT_EQ(a.scratch.peak(), adapter_scratch_bytes(Device{}, s.rows, s.k, s.hidden, s.dim));
  }
  EXPECT_EQ(adapter_scratch_bytes(Device{}, 0, 2, 8, 4), 0);
  EXPECT_LE(adapter_scratch_bytes(Device{}, 100, 2, 64, 16),
            adapter_scratch_bytes(Device{}, 1000000, 2, 64, 16));
}

TEST(Adapter, TwoRunsAreBitwiseEqual) {
  const Shape s = shapes()[5];
  Adapter a(s);
  Adapter b(s);
  a.forward();
  b.forward();
  EXPECT_EQ(a.out.data, b.out.data);
  Gradients ga(s);
  Gradients gb(s);
  ga.run(a);
  gb.run(b);
  EXPECT_EQ(ga.df.data, gb.df.data);
  EXPECT_EQ(ga.ddown.data, gb.ddown.data);
  EXPECT_EQ(ga.dup.data, gb.dup.data);
}

TEST(Adapter, BadGroupsThrow) {
  Adapter a({7, 5, 3, 3, 5, 2, 2});
  a.choice[1] = 14;
  EXPECT_THROW(a.forward(), InternalError);
  a.choice[1] = 1;
  a.offsets.back() += 1;
  EXPECT_THROW(a.forward(), InternalError);
}

}  // namespace
}  // namespace pesc
