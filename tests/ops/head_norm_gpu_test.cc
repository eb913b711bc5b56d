// RMSNorm of each head on the GPU against its CPU twin, and twice for the same bits.
#include <gtest/gtest.h>

#include "ops/head_norm.h"
#include "tests/ops/gpu_twin.h"
#include "tests/ops/reference.h"

namespace pesc {
namespace {

struct Shape {
  int64_t tokens, heads, dim, gap;
};
// The usual heads, several rows a warp, odd widths and strides, one row, no rows, heads with more packs than
// a warp has lanes, more heads than go in one round of the grid.
const Shape kShapes[] = {{33, 4, 128, 0}, {9, 8, 64, 64},     {7, 3, 96, 8},     {5, 2, 65, 3},
                         {1, 1, 8, 0},    {0, 4, 64, 0},      {3, 1, 3, 0},      {6, 2, 1288, 0},
                         {4, 1, 301, 1},  {4097, 40, 128, 0}, {20011, 33, 16, 8}};
constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

class HeadNormGpu : public GpuTwin {};

TEST_F(HeadNormGpu, ForwardBesideAndInPlace) {
  for (const DType t : kTypes) {
    for (const auto& [tokens, heads, dim, gap] : kShapes) {
      const int64_t cols = heads * dim;
      const HostMatrix x = rounded(HostMatrix::normal(tokens, cols, 1, gap), t);
      const HostMatrix w = HostMatrix::normal(1, dim, 2);
      HostMatrix y(tokens, cols, gap), rstd(tokens, heads, 3);
      head_norm_forward(cpu, {x.view, w.view, 1e-6F, y.view, rstd.view});
      const auto run = [&]() -> Outputs {
        const OnGpu gx(gpu(), x, t), gw(gpu(), w), gy(gpu(), HostMatrix(tokens, cols, gap), t);
        const OnGpu grstd(gpu(), HostMatrix(tokens, heads, 3));
        head_norm_forward(gpu(), {gx.view, gw.view, 1e-6F, gy.view, grstd.view});
        head_norm_forward(gpu(), {gx.view, gw.view, 1e-6F, gx.view, grstd.view});
        EXPECT_TRUE(same_bits(gx.host(), gy.host())) << shape_name(t, tokens, cols, gap);
        return {gy.host(), grstd.host()};
      };
      compare(str_cat(shape_name(t, tokens, cols, gap), ", heads of ", dim), run, {y, rstd}, bound(t));
    }
  }
}

TEST_F(HeadNormGpu, BackwardBesideAndInPlace) {
  for (const DType t : kTypes) {
    for (const auto& [tokens, heads, dim, gap] : kShapes) {
      const int64_t cols = heads * dim;
      const HostMatrix x = rounded(HostMatrix::normal(tokens, cols, 1, gap), t);
      const HostMatrix dy = rounded(HostMatrix::normal(tokens, cols, 4, gap), t);
      const HostMatrix w = HostMatrix::normal(1, dim, 2);
      HostMatrix y(tokens, cols), rstd(tokens, heads), dx(tokens, cols, gap), dweight(1, dim, 0, 0.5F);
      head_norm_forward(cpu, {x.view, w.view, 1e-6F, y.view, rstd.view});
      head_norm_backward(cpu, {dy.view, x.view, w.view, rstd.view, dx.view, dweight.view});
      const auto run = [&]() -> Outputs {
        const OnGpu gx(gpu(), x, t), gw(gpu(), w), gdy(gpu(), dy, t), grstd(gpu(), rstd);
        const OnGpu gdx(gpu(), HostMatrix(tokens, cols, gap, 7.0F), t);
        const OnGpu gdweight(gpu(), HostMatrix(1, dim, 0, 0.5F)), again(gpu(), HostMatrix(1, dim, 0, 0.5F));
        head_norm_backward(gpu(), {gdy.view, gx.view, gw.view, grstd.view, gdx.view, gdweight.view});
        head_norm_backward(gpu(), {gdy.view, gx.view, gw.view, grstd.view, gdy.view, again.view});
        EXPECT_TRUE(same_bits(gdy.host(), gdx.host())) << shape_name(t, tokens, cols, gap);
        EXPECT_TRUE(same_bits(again.host(), gdweight.host())) << shape_name(t, tokens, cols, gap);
        return {gdx.host(), gdweight.host()};
      };
      // The weight's gradient sums up to millions of rows in float32, in another order.
      compare(str_cat(shape_name(t, tokens, cols, gap), ", heads of ", dim), run, {dx, dweight},
              t == DType::kF32 ? 5e-5 : bound(t));
    }
  }
}

// As the layer uses it: q and k inside of q, k and v; v stays.
TEST_F(HeadNormGpu, OfColumnsInsideOfAMatrixLeavesTheOthersAlone) {
  constexpr int64_t kTokens = 19, kDim = 64;
  for (const DType t : kTypes) {
    const HostMatrix qkv = rounded(HostMatrix::normal(kTokens, 8 * kDim, 1), t);
    const HostMatrix w = HostMatrix::normal(1, kDim, 2);
    const auto both = [&](Stream& s, const Tensor& all, const Tensor& weight, const Tensor& rstd) {
      const Tensor q = all.col_range(0, 4 * kDim), k = all.col_range(4 * kDim, 6 * kDim);
      head_norm_forward(s, {q, weight, 1e-6F, q, rstd.col_range(0, 4)});
      head_norm_forward(s, {k, weight, 1e-6F, k, rstd.col_range(4, 6)});
    };
    HostMatrix want = qkv, rstd(kTokens, 6);
    both(cpu, want.view, w.view, rstd.view);
    const auto run = [&]() -> Outputs {
      const OnGpu gqkv(gpu(), qkv, t), gw(gpu(), w), grstd(gpu(), HostMatrix(kTokens, 6));
      both(gpu(), gqkv.view, gw.view, grstd.view);
      HostMatrix v(kTokens, 2 * kDim), v_before = v;
      const HostMatrix after = gqkv.host();
      for (int64_t r = 0; r < kTokens; ++r) {
        for (int64_t c = 0; c < 2 * kDim; ++c) {
          v(r, c) = after(r, 6 * kDim + c);
          v_before(r, c) = qkv(r, 6 * kDim + c);
        }
      }
      EXPECT_TRUE(same_bits(v, v_before));
      return {after, grstd.host()};
    };
    compare("q and k", run, {want, rstd}, bound(t));
  }
}

}  // namespace
}  // namespace pesc
