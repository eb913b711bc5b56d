// RMSNorm, RoPE, SwiGLU and AdamW on the GPU against their CPU twins.
#include <gtest/gtest.h>

#include "ops/adamw.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"
#include "tests/ops/reference.h"
#include "tests/ops/token_identities.h"

namespace pesc {
namespace {

struct Shape {
  int64_t rows, cols, gap;
};
// Packed rows, odd widths, odd strides, one row, no rows, more columns than threads, more rows than go at
// once.
const Shape kShapes[] = {{5, 64, 0},    {33, 130, 0},  {7, 65, 3},      {9, 96, 8},    {4, 40, 1},
                         {1, 8, 0},     {0, 64, 0},    {3, 1, 0},       {2, 4096, 0},  {300, 520, 0},
                         {5, 7168, 64}, {3, 12288, 0}, {1001, 4096, 8}, {1800, 264, 0}};
constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

class RmsNormGpu : public GpuTwin {
 protected:
  void terms(int64_t experts, DType t, int64_t rows, int64_t cols, int64_t gap) {
    Identities id(gpu(), rows);
    const float rate = cols % 3 == 0 ? 0.0F : 0.1F;
    const Dropout on_cpu = id.on_cpu(rate), on_gpu = id.on_gpu(rate);
    const int64_t routed = rows - rows / 3;  // the rest is padding
    const HostMatrix x = rounded(HostMatrix::normal(rows, cols, 1, gap), t);
    const HostMatrix w = HostMatrix::normal(1, cols, 2), router = HostMatrix::normal(experts, cols, 3);
    const HostMatrix dlogits = HostMatrix::normal(routed, experts, 6);
    const HostMatrix dy = rounded(HostMatrix::normal(rows, cols, 4, gap), t);
    const HostMatrix term = rounded(HostMatrix::normal(rows, cols, 7, gap), t);
    const HostMatrix before = rounded(HostMatrix::normal(rows, cols, 5, gap), t);
    HostMatrix y(rows, cols, gap), rstd(1, rows), dropped(rows, cols, gap), used_up = dy, dx = before;
    rmsnorm_forward(cpu, {x.view, {}, {}, w.view, 1e-5F, y.view, rstd.view, {on_cpu, dropped.view}});
    rmsnorm_backward(cpu, {used_up.view,
                           x.view,
                           w.view,
                           rstd.view,
                           dx.view,
                           {},
                           {on_cpu, term.view},
                           experts > 0 ? LowRankTerm{dlogits.view, router.view} : LowRankTerm{}});
    const auto run = [&]() -> Outputs {
      const OnGpu gx(gpu(), x, t), gw(gpu(), w), gdy(gpu(), dy, t), gterm(gpu(), term, t);
      const OnGpu grouter(gpu(), router), gdlogits(gpu(), dlogits), gdx(gpu(), before, t);
      const OnGpu gy(gpu(), HostMatrix(rows, cols, gap), t), gdropped(gpu(), HostMatrix(rows, cols, gap), t);
      const OnGpu again(gpu(), HostMatrix(rows, cols, gap), t), both(gpu(), HostMatrix(rows, cols, gap), t);
      const OnGpu grstd(gpu(), HostMatrix(1, rows));
      rmsnorm_forward(gpu(), {gx.view, {}, {}, gw.view, 1e-5F, gy.view, grstd.view, {on_gpu, gdropped.view}});
      rmsnorm_apply(gpu(), gx.view, gw.view, grstd.view, {}, {on_gpu, again.view});
      EXPECT_TRUE(same_bits(again.host(), gdropped.host())) << shape_name(t, rows, cols, gap);
      rmsnorm_apply(gpu(), gx.view, gw.view, grstd.view, again.view, {on_gpu, both.view});
      EXPECT_TRUE(same_bits(again.host(), gy.host())) << shape_name(t, rows, cols, gap);
      EXPECT_TRUE(same_bits(both.host(), gdropped.host())) << shape_name(t, rows, cols, gap);
      rmsnorm_backward(gpu(), {gdy.view,
                               gx.view,
                               gw.view,
                               grstd.view,
                               gdx.view,
                               {},
                               {on_gpu, gterm.view},
                               experts > 0 ? LowRankTerm{gdlogits.view, grouter.view} : LowRankTerm{}});
      return {gy.host(), gdropped.host(), gdx.host()};
    };
    compare(str_cat(shape_name(t, rows, cols, gap), ", ", experts, " experts"), run, {y, dropped, dx},
            bound(t));
  }
};

TEST_F(RmsNormGpu, ForwardAndApplyMatchTheCpu) {
  for (const DType t : kTypes) {
    for (const DType weight_type : kTypes) {
      for (const auto& [rows, cols, gap] : kShapes) {
        const HostMatrix x = rounded(HostMatrix::normal(rows, cols, 1, gap), t);
        const HostMatrix w = rounded(HostMatrix::normal(1, cols, 2), weight_type);
        HostMatrix y(rows, cols, gap), rstd(1, rows);
        rmsnorm_forward(cpu, {x.view, {}, {}, w.view, 1e-5F, y.view, rstd.view});
        const auto run = [&]() -> Outputs {
          const OnGpu gx(gpu(), x, t), gw(gpu(), w, weight_type);
          const OnGpu gy(gpu(), HostMatrix(rows, cols, gap), t), gy2(gpu(), HostMatrix(rows, cols, gap), t);
          const OnGpu grstd(gpu(), HostMatrix(1, rows));
          rmsnorm_forward(gpu(), {gx.view, {}, {}, gw.view, 1e-5F, gy.view, grstd.view});
          rmsnorm_apply(gpu(), gx.view, gw.view, grstd.view, gy2.view);
          EXPECT_TRUE(same_bits(gy.host(), gy2.host())) << shape_name(t, rows, cols, gap);
          return {gy.host(), grstd.host()};
        };
        compare(shape_name(t, rows, cols, gap), run, {y, rstd}, bound(t));
      }
    }
  }
}

TEST_F(RmsNormGpu, AResidualMayBeWrittenInPlace) {
  for (const DType t : kTypes) {
    for (const auto& [rows, cols, gap] : kShapes) {
      const HostMatrix x = rounded(HostMatrix::normal(rows, cols, 1, gap), t);
      const HostMatrix residual = rounded(HostMatrix::normal(rows, cols, 3, gap), t);
      const HostMatrix w = rounded(HostMatrix::normal(1, cols, 2), t);
      HostMatrix x_out(rows, cols, gap), y(rows, cols, gap), rstd(1, rows);
      rmsnorm_forward(cpu, {x.view, residual.view, x_out.view, w.view, 1e-5F, y.view, rstd.view});
      const auto run = [&]() -> Outputs {
        const OnGpu gx(gpu(), x, t), gw(gpu(), w, t), gresidual(gpu(), residual, t);
        const OnGpu gy(gpu(), HostMatrix(rows, cols, gap), t), grstd(gpu(), HostMatrix(1, rows));
        rmsnorm_forward(gpu(), {gx.view, gresidual.view, gx.view, gw.view, 1e-5F, gy.view, grstd.view});
        return {gx.host(), gy.host(), grstd.host()};
      };
      // y is made from the rounded sum: twice the rounding.
      compare(shape_name(t, rows, cols, gap), run, {x_out, y, rstd}, 2 * bound(t));
    }
  }
}

TEST_F(RmsNormGpu, BackwardMatchesTheCpu) {
  for (const DType t : kTypes) {
    for (const auto& [rows, cols, gap] : kShapes) {
      const HostMatrix x = rounded(HostMatrix::normal(rows, cols, 1, gap), t);
      const HostMatrix dy = rounded(HostMatrix::normal(rows, cols, 4, gap), t);
      const HostMatrix w = rounded(HostMatrix::normal(1, cols, 2), t);
      const HostMatrix before = rounded(HostMatrix::normal(rows, cols, 5, gap), t);
      HostMatrix y(rows, cols, gap), rstd(1, rows), dx = before, dweight(1, cols, 0, 0.5F);
      rmsnorm_forward(cpu, {x.view, {}, {}, w.view, 1e-5F, y.view, rstd.view});
      rmsnorm_backward(cpu, {dy.view, x.view, w.view, rstd.view, dx.view, dweight.view});
      const auto run = [&]() -> Outputs {
        const OnGpu gx(gpu(), x, t), gw(gpu(), w, t), gdy(gpu(), dy, t), gdx(gpu(), before, t);
        const OnGpu grstd(gpu(), rstd), gdweight(gpu(), HostMatrix(1, cols, 0, 0.5F));
        rmsnorm_backward(gpu(), {gdy.view, gx.view, gw.view, grstd.view, gdx.view, gdweight.view});
        return {gdx.host(), gdweight.host()};
      };
      compare(shape_name(t, rows, cols, gap), run, {dx, dweight}, bound(t));
    }
  }
}

TEST_F(RmsNormGpu, DroppedCopyAndTermsOfTheGradient) {
  // More experts than a ring's registers hold, as many, fewer, and no router.
  for (const int64_t experts : {17, 8, 3, 0}) {
    for (const DType t : kTypes) {
      for (const auto& [rows, cols, gap] : kShapes) terms(experts, t, rows, cols, gap);
    }
  }
}

class RopeGpu : public GpuTwin {};

TEST_F(RopeGpu, TableAndRotationMatchTheCpu) {
  for (const DType t : kTypes) {
    for (const int64_t half : {1, 4, 5, 64, 150}) {
      constexpr int64_t kPositions = 50;
      std::vector<double> inv_freq;
      for (int64_t i = 0; i < half; ++i)
        inv_freq.push_back(std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half)));
      HostMatrix cos(kPositions, half), sin(kPositions, half);
      rope_table(cpu, inv_freq, cos.view, sin.view);
      const auto table = [&]() -> Outputs {
        const OnGpu gcos(gpu(), HostMatrix(kPositions, half)), gsin(gpu(), HostMatrix(kPositions, half));
        rope_table(gpu(), inv_freq, gcos.view, gsin.view);
        return {gcos.host(), gsin.host()};
      };
      compare("table", table, {cos, sin}, 1e-7);

      for (const auto& [rows, heads, gap] :
           {Shape{17, 3, 0}, Shape{5, 1, 7}, Shape{0, 2, 0}, Shape{9, 2, 8}}) {
        const int64_t cols = heads * 2 * half;
        const HostMatrix x = rounded(HostMatrix::normal(rows, cols, 1, gap), t);
        std::vector<int32_t> positions = random_ints(rows, 0, kPositions - 1, 9);
        for (const RopeDirection way : {RopeDirection::kForward, RopeDirection::kBackward}) {
          HostMatrix want = x;
          rope(cpu, want.view, tensor_of(positions.data(), 1, rows), cos.view, sin.view, way);
          const auto run = [&]() -> Outputs {
            const OnGpu gx(gpu(), x, t), gcos(gpu(), cos), gsin(gpu(), sin);
            const ArrayOnGpu<int32_t> at(gpu(), positions);
            rope(gpu(), gx.view, at.view, gcos.view, gsin.view, way);
            return {gx.host()};
          };
          compare(shape_name(t, rows, cols, gap), run, {want}, bound(t));
        }
      }
    }
  }
}

class SwigluGpu : public GpuTwin {};

TEST_F(SwigluGpu, ForwardAndBackwardInPlace) {
  for (const DType t : kTypes) {
    for (const auto& [rows, cols, gap] : kShapes) {
      const HostMatrix gate_up = rounded(HostMatrix::normal(rows, 2 * cols, 1, gap, 3), t);
      const HostMatrix dh = rounded(HostMatrix::normal(rows, cols, 2, gap), t);
      HostMatrix h(rows, cols, gap), dgate_up(rows, 2 * cols, gap);
      swiglu_forward(cpu, gate_up.view, h.view);
      Arena none = host_scratch(0);
      swiglu_backward(cpu, {dh.view, gate_up.view, dgate_up.view}, none);
      const auto run = [&]() -> Outputs {
        const OnGpu ggate_up(gpu(), gate_up, t), gdh(gpu(), dh, t);
        const OnGpu gh(gpu(), HostMatrix(rows, cols, gap), t);
        swiglu_forward(gpu(), ggate_up.view, gh.view);
        Arena nothing = scratch(0);
        swiglu_backward(gpu(), {gdh.view, ggate_up.view, ggate_up.view}, nothing);
        return {gh.host(), ggate_up.host()};
      };
      compare(shape_name(t, rows, cols, gap), run, {h, dgate_up}, bound(t));
    }
  }
}

TEST_F(SwigluGpu, DroppedCopyAndLoraPath) {
  for (const DType t : kTypes) {
    for (const auto& [rows, cols, gap] : kShapes) {
      for (const int64_t rank : {8, 64}) {
        Identities id(gpu(), rows);
        const float rate = cols % 3 == 0 ? 0.0F : 0.1F;
        constexpr float kScale = 0.25F;
        const HostMatrix gate_up = rounded(HostMatrix::normal(rows, 2 * cols, 1, gap, 2), t);
        const HostMatrix dh = rounded(HostMatrix::normal(rows, cols, 2, gap), t);
        const HostMatrix dout = rounded(HostMatrix::normal(rows, rank, 3, gap), t);
        const HostMatrix a =
            rounded(HostMatrix::normal(rank, cols, 4, 0, 1 / std::sqrt(static_cast<float>(rank))), t);
        HostMatrix h(rows, cols, gap), dropped(rows, cols, gap), dgate_up(rows, 2 * cols, gap), used_up = dh;
        HostMatrix da(rank, cols, 0, 0.5F);
        Arena host = host_scratch(swiglu_scratch_bytes(Device{}, rows, cols));
        swiglu_forward(cpu, gate_up.view, h.view, {id.on_cpu(rate), dropped.view});
        swiglu_backward(cpu,
                        {used_up.view,
                         gate_up.view,
                         dgate_up.view,
                         {dout.view, a.view, kScale, id.on_cpu(rate), da.view}},
                        host);
        const auto run = [&]() -> Outputs {
          const OnGpu ggate_up(gpu(), gate_up, t), gdh(gpu(), dh, t), gdout(gpu(), dout, t), ga(gpu(), a, t);
          const OnGpu gh(gpu(), HostMatrix(rows, cols, gap), t),
              gdropped(gpu(), HostMatrix(rows, cols, gap), t);
          const OnGpu alone(gpu(), HostMatrix(rows, cols, gap), t),
              gda(gpu(), HostMatrix(rank, cols, 0, 0.5F));
          const int64_t bytes = swiglu_scratch_bytes(gpu().device(), rows, cols, t);
          Arena memory = scratch(bytes);
          swiglu_forward(gpu(), ggate_up.view, gh.view, {id.on_gpu(rate), gdropped.view});
          swiglu_forward(gpu(), ggate_up.view, {}, {id.on_gpu(rate), alone.view});
          EXPECT_TRUE(same_bits(alone.host(), gdropped.host())) << shape_name(t, rows, cols, gap);
          swiglu_backward(gpu(),
                          {gdh.view,
                           ggate_up.view,
                           ggate_up.view,
                           {gdout.view, ga.view, kScale, id.on_gpu(rate), gda.view}},
                          memory);
          EXPECT_EQ(memory.used(), 0);
          EXPECT_LE(memory.peak(), bytes);
          return {gh.host(), gdropped.host(), ggate_up.host(), gda.host()};
        };
        // The gradient before the mask and the masked input are rounded as well.
        compare(str_cat(shape_name(t, rows, cols, gap), " rank ", rank), run, {h, dropped, dgate_up, da},
                2 * bound(t));
      }
    }
  }
}

TEST_F(SwigluGpu, LargeGatesStayFinite) {
  HostMatrix gate_up(1, 8);
  for (int64_t c = 0; c < 4; ++c) {
    gate_up(0, c) = std::vector<float>{-100, -1e30F, 100, 1e30F}[static_cast<size_t>(c)];
    gate_up(0, 4 + c) = 1;
  }
  const OnGpu ggate_up(gpu(), gate_up), gh(gpu(), HostMatrix(1, 4));
  swiglu_forward(gpu(), ggate_up.view, gh.view);
  const HostMatrix h = gh.host();
  EXPECT_NEAR(h(0, 0), 0, 1e-30);
  EXPECT_EQ(h(0, 1), 0);
  EXPECT_EQ(h(0, 2), 100);
  EXPECT_EQ(h(0, 3), 1e30F);
}

class AdamwGpu : public GpuTwin {};

TEST_F(AdamwGpu, ComputeWeightMayBePartOfAWiderMatrix) {
  for (const auto& [rows, cols, gap] :
       {Shape{12, 8, 8}, Shape{7, 5, 3}, Shape{40, 64, 4096}, Shape{3, 16, 0}}) {
    const HostMatrix param = HostMatrix::normal(1, rows * cols, 1),
                     grad = HostMatrix::normal(1, rows * cols, 2);
    const OnGpu gp(gpu(), param), gg(gpu(), grad), gm(gpu(), HostMatrix(1, rows * cols));
    const OnGpu gv(gpu(), HostMatrix(1, rows * cols)), copy(gpu(), HostMatrix(rows, cols, gap), DType::kBF16);
    const AdamW update{.param = gp.view,
                       .grad = gg.view,
                       .exp_avg = gm.view,
                       .exp_avg_sq = gv.view,
                       .compute_weight = copy.view,
                       .lr = 1e-2};
    adamw(gpu(), {&update, 1});
    EXPECT_EQ(copy.host().values(), rounded(gp.host(), DType::kBF16).values()) << rows << "x" << cols;
    EXPECT_TRUE(copy.host().gaps_untouched());
  }
}

TEST_F(AdamwGpu, SeveralStepsMatchTheCpu) {
  for (const int64_t n : {0, 1, 7, 256, 1003, 40000}) {
    const HostMatrix param = HostMatrix::normal(1, n, 1);
    const HostMatrix grad = HostMatrix::normal(1, n, 2);
    const auto steps = [&](Stream& s, const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v) {
      for (int64_t step = 1; step <= 5; ++step) {
        const AdamW update{.param = p,
                           .grad = g,
                           .exp_avg = m,
                           .exp_avg_sq = v,
                           .lr = 1e-2,
                           .weight_decay = 0.1,
                           .step = step,
                           .grad_scale = 0.7F};
        adamw(s, {&update, 1});
      }
    };
    HostMatrix want = param, m(1, n), v(1, n);
    steps(cpu, want.view, grad.view, m.view, v.view);
    const auto run = [&]() -> Outputs {
      const OnGpu gp(gpu(), param), gg(gpu(), grad), gm(gpu(), HostMatrix(1, n)), gv(gpu(), HostMatrix(1, n));
      steps(gpu(), gp.view, gg.view, gm.view, gv.view);
      return {gp.host(), gm.host(), gv.host()};
    };
    compare(str_cat(n, " elements"), run, {want, m, v}, 1e-6);
  }
}

// More parameters than two launches take, most of them in packs, some at odd addresses or of odd sizes, one of many
// blocks; every third has its compute weight in a wider matrix. Each has settings of its own.
TEST_F(AdamwGpu, ManyParametersAtOnceAreAsOneByOne) {
  constexpr int64_t kGap = 24;
  struct Part {
    int64_t begin, rows, cols;
    [[nodiscard]] int64_t end() const { return begin + rows * cols; }
  };
  std::vector<Part> parts;
  for (int64_t i = 0, begin = 0; i < 120; ++i) {
    const bool odd = i % 10 == 3;
    Part part{begin + (odd ? 1 : 0), i % 7, odd ? 33 : 64 * (1 + i % 5)};
    if (i == 57) part = {begin, 30'000, 100};
    parts.push_back(part);
    begin = (part.end() + 15) / 16 * 16;
  }
  const int64_t n = parts.back().end();
  const HostMatrix param = HostMatrix::normal(1, n, 1), grad = HostMatrix::normal(1, n, 2);
  const auto run = [&](bool together) -> Outputs {
    const OnGpu gp(gpu(), param), gg(gpu(), grad), gm(gpu(), HostMatrix(1, n)), gv(gpu(), HostMatrix(1, n));
    const OnGpu flat_copy(gpu(), HostMatrix(1, n), DType::kBF16);
    std::vector<std::unique_ptr<OnGpu>> wide;
    std::vector<AdamW> updates;
    for (size_t i = 0; i < parts.size(); ++i) {
      const Part& at = parts[i];
      const auto part = [&](const OnGpu& whole) { return whole.view.col_range(at.begin, at.end()); };
      AdamW update{.param = part(gp), .grad = part(gg), .exp_avg = part(gm), .exp_avg_sq = part(gv)};
      update.lr = 1e-3 * static_cast<double>(i + 1);
      update.weight_decay = i % 2 == 0 ? 0.1 : 0;
      update.step = static_cast<int64_t>(i) + 1;
      update.grad_scale = 1.0F / static_cast<float>(i + 1);
      if (i % 3 == 0) {
        wide.push_back(std::make_unique<OnGpu>(gpu(), HostMatrix(at.rows, at.cols, kGap), DType::kBF16));
        update.compute_weight = wide.back()->view;
      } else if (i % 3 == 1) {
        update.compute_weight = part(flat_copy);
      }
      updates.push_back(update);
    }
    if (together) {
      adamw(gpu(), updates);
    } else {
      for (const AdamW& update : updates) adamw(gpu(), {&update, 1});
    }
    Outputs out{gp.host(), gm.host(), gv.host(), flat_copy.host()};
    for (const auto& copy : wide) {
      out.push_back(copy->host());
      EXPECT_TRUE(out.back().gaps_untouched());
    }
    return out;
  };
  const Outputs one_by_one = run(false), together = run(true);
  for (size_t i = 0; i < together.size(); ++i) EXPECT_EQ(together[i].values(), one_by_one[i].values()) << i;
  size_t changed = 0, of_parts = 0;
  for (const Part& at : parts) {
    for (int64_t e = at.begin; e < at.end(); ++e, ++of_parts)
      changed += together[0](0, e) != param(0, e) ? 1U : 0U;
  }
  EXPECT_GT(changed, of_parts * 9 / 10);
}

}  // namespace
}  // namespace pesc
