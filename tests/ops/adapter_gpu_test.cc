// The adapter experts on the GPU, grouped and dense, against their CPU twin.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "ops/adapter.h"
#include "ops/adapter_scratch.h"
#include "tests/ops/gpu_twin.h"

namespace pesc {
namespace {

enum class Spread { kUniform, kFirstExpertUnused };

struct Shape {
  int64_t rows, hidden, dim, experts;  // experts here
  int64_t all_experts, k, gap;         // a row chooses k of all_experts; only those below `experts` are here
  Spread spread = Spread::kUniform;
};

const Shape kShapes[] = {
    {1, 1, 1, 1, 1, 1, 0},
    {7, 5, 3, 3, 5, 2, 2},
    {64, 64, 16, 4, 4, 2, 0},
    {6, 40, 8, 3, 3, 3, 8},                                // every row at every expert
    {0, 8, 4, 3, 3, 2, 0},                                 // no rows
    {9, 6, 4, 0, 4, 2, 0},                                 // no experts here
    {40, 33, 17, 4, 8, 2, 3, Spread::kFirstExpertUnused},  // an expert without rows
    {300, 24, 160, 8, 8, 2, 0},                            // grouped in both types
    {300, 24, 165, 8, 8, 2, 1},                            // the same, at odd widths
    {500, 16, 64, 1, 1, 1, 0},                             // one expert with all rows
    {20000, 24, 160, 8, 8, 2, 0},                          // several runs, borders of experts within them
    {40000, 8, 40, 1, 1, 1, 0},                            // several runs of rows that stand as they should
};

struct Problem {
  Shape shape;
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> row, choice;
  HostMatrix f, weights, down, up, dout;

  Problem(const Shape& s, DType t)
      : shape(s),
        f(rounded(HostMatrix::normal(s.rows, s.hidden, 1, s.gap), t)),
        weights(HostMatrix::normal(s.rows, s.k, 2)),
        down(rounded(HostMatrix::normal(s.experts * s.dim, s.hidden, 3, 0,
                                        1.0F / std::sqrt(static_cast<float>(s.hidden))),
                     t)),
        up(rounded(HostMatrix::normal(s.experts * s.hidden, s.dim, 4), t)),
        dout(rounded(HostMatrix::normal(s.rows, s.hidden, 7, s.gap), t)) {
    std::mt19937 random(11);
    std::vector<std::vector<int32_t>> choices(static_cast<size_t>(s.all_experts));
    for (int64_t r = 0; r < s.rows; ++r) {
      std::set<size_t> used;
      for (int64_t j = 0; j < s.k; ++j) {
        size_t e = 0;
        do {
          e = random() % static_cast<size_t>(s.all_experts);
          if (s.spread == Spread::kFirstExpertUnused && e == 0) e = 1;
        } while (!used.insert(e).second);
        choices[e].push_back(static_cast<int32_t>(r * s.k + j));
      }
    }
    for (int64_t e = 0; e < s.experts; ++e) {
      for (const int32_t at : choices[static_cast<size_t>(e)]) {
        row.push_back(at / static_cast<int32_t>(s.k));
        choice.push_back(at);
      }
      offsets.push_back(static_cast<int64_t>(row.size()));
    }
  }
  [[nodiscard]] AdapterGroups groups() const { return {offsets, row, choice}; }
  [[nodiscard]] int64_t assignments() const { return static_cast<int64_t>(row.size()); }
  [[nodiscard]] AdapterForm form(DType t) const {
    return adapter_form(t, shape.rows, assignments(), shape.experts, shape.dim);
  }
  [[nodiscard]] std::string name(DType t) const {
    return str_cat(shape_name(t, shape.rows, shape.hidden, shape.gap), ", ", shape.experts, " experts of ",
                   shape.dim, form(t) == AdapterForm::kDense ? ", dense" : ", grouped");
  }
};

constexpr float kScale = 0.6F;
constexpr float kBefore = -0.5F;  // what `out` holds already

class AdapterGpu : public GpuTwin {
 protected:
  // pre_act, out, df, dweights, ddown, dup
  Outputs on_gpu(const Problem& p, DType t) {
    const Shape& s = p.shape;
    const OnGpu f(gpu(), p.f, t), weights(gpu(), p.weights), down(gpu(), p.down, t), up(gpu(), p.up, t);
    const OnGpu dout(gpu(), p.dout, t), pre_act(gpu(), HostMatrix(p.assignments(), s.dim, 0, NAN), t);
    const OnGpu out(gpu(), HostMatrix(s.rows, s.hidden, s.gap, kBefore), t), again(gpu(), pre_act.host(), t);
    const OnGpu df(gpu(), HostMatrix(s.rows, s.hidden, s.gap, NAN), t),
        dweights(gpu(), HostMatrix(s.rows, s.k, 0, NAN));
    const OnGpu ddown(gpu(), HostMatrix(s.experts * s.dim, s.hidden, 0, 2));
    const OnGpu dup(gpu(), HostMatrix(s.experts * s.hidden, s.dim, 0, -1));
    const int64_t bytes = adapter_scratch_bytes(gpu().device(), s.rows, s.k, s.hidden, s.dim, t);
    Arena memory = scratch(bytes);
    AdapterForward forward{p.groups(), f.view, weights.view, down.view,
                           up.view,    kScale, pre_act.view, out.view};
    adapter_forward(gpu(), forward, memory);
    forward.pre_act = again.view;
    forward.out = {};
    adapter_pre_act(gpu(), forward, memory);
    EXPECT_TRUE(same_bits(pre_act.host(), again.host())) << "pre_act recomputed, " << p.name(t);
    adapter_backward(gpu(),
                     {p.groups(), f.view, weights.view, down.view, up.view, kScale, pre_act.view, dout.view,
                      df.view, dweights.view, ddown.view, dup.view},
                     memory);
    EXPECT_EQ(memory.used(), 0);
    EXPECT_LE(memory.peak(), bytes) << p.name(t);
    return {pre_act.host(), out.host(), df.host(), dweights.host(), ddown.host(), dup.host()};
  }

  Outputs on_cpu(const Problem& p) {
    const Shape& s = p.shape;
    HostMatrix pre_act(p.assignments(), s.dim), out(s.rows, s.hidden, s.gap, kBefore),
        df(s.rows, s.hidden, s.gap);
    HostMatrix dweights(s.rows, s.k), ddown(s.experts * s.dim, s.hidden, 0, 2);
    HostMatrix dup(s.experts * s.hidden, s.dim, 0, -1);
    Arena memory = host_scratch(adapter_scratch_bytes(Device{}, s.rows, s.k, s.hidden, s.dim));
    adapter_forward(
        cpu, {p.groups(), p.f.view, p.weights.view, p.down.view, p.up.view, kScale, pre_act.view, out.view},
        memory);
    adapter_backward(cpu,
                     {p.groups(), p.f.view, p.weights.view, p.down.view, p.up.view, kScale, pre_act.view,
                      p.dout.view, df.view, dweights.view, ddown.view, dup.view},
                     memory);
    return {pre_act, out, df, dweights, ddown, dup};
  }
};

TEST_F(AdapterGpu, ForwardHiddenAndBackward) {
  for (const DType t : {DType::kF32, DType::kBF16}) {
    std::set<AdapterForm> forms;
    for (const Shape& s : kShapes) {
      const Problem p(s, t);
      forms.insert(p.form(t));
      // In bf16 what comes before the last rounding was rounded up to three times: pre_act, the weighted GELU
      // or its gradient, the product of one expert.
      compare(
          p.name(t), [&] { return on_gpu(p, t); }, on_cpu(p), t == DType::kBF16 ? 4 * bound(t) : bound(t));
    }
    EXPECT_EQ(forms.size(), 2U) << "both forms must be met with " << dtype_name(t);
  }
}

TEST_F(AdapterGpu, WithUpZeroTheOutputStays) {
  for (const Shape& s : {kShapes[1], kShapes[7]}) {
    Problem p(s, DType::kBF16);
    p.up.fill(0);
    for (const double v : on_gpu(p, DType::kBF16)[1].values()) ASSERT_EQ(v, kBefore) << p.name(DType::kBF16);
  }
}

TEST_F(AdapterGpu, ExpertsWithoutRowsGetNothing) {
  const Problem p(kShapes[6], DType::kF32);
  ASSERT_EQ(p.offsets[1], 0);
  const Outputs got = on_gpu(p, DType::kF32);
  const std::set<int32_t> here(p.choice.begin(), p.choice.end());
  ASSERT_LT(here.size(), got[3].data.size());
  for (size_t i = 0; i < got[3].data.size(); ++i)
    if (!here.contains(static_cast<int32_t>(i))) {
      EXPECT_EQ(got[3].data[i], 0.0F);
    }
  for (int64_t i = 0; i < p.shape.dim; ++i)
    for (int64_t j = 0; j < p.shape.hidden; ++j) ASSERT_EQ(got[4](i, j), 2.0F);
  for (int64_t i = 0; i < p.shape.hidden; ++i)
    for (int64_t j = 0; j < p.shape.dim; ++j) ASSERT_EQ(got[5](i, j), -1.0F);
}

TEST_F(AdapterGpu, BadGroupsThrow) {
  Problem p(kShapes[1], DType::kF32);
  p.choice[1] = 14;
  EXPECT_THROW((void)on_gpu(p, DType::kF32), InternalError);
  p.choice[1] = 1;
  p.row[0] = 7;
  EXPECT_THROW((void)on_gpu(p, DType::kF32), InternalError);
}

}  // namespace
}  // namespace pesc
