// SwiGLU against float64, forward and backward.
#include "ops/swiglu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/ops/reference.h"

namespace pesc {
namespace {

struct Shape {
  int64_t tokens, columns, gap;
  int threads;
};
const std::vector<Shape> kShapes = {{0, 8, 0, 2},  {1, 1, 0, 1},     {3, 17, 2, 1},   {65, 63, 0, 2},
                                    {7, 65, 5, 1}, {129, 344, 0, 2}, {40, 1376, 3, 2}};

Matrix64 reference(const Matrix64& gate_up) {
  Matrix64 h(gate_up.rows, gate_up.cols / 2);
  for (int64_t t = 0; t < h.rows; ++t)
    for (int64_t c = 0; c < h.cols; ++c)
      h(t, c) = gate_up(t, c) / (1 + std::exp(-gate_up(t, c))) * gate_up(t, h.cols + c);
  return h;
}

TEST(SwiGlu, ForwardMatchesTheReference) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(str_cat(s.tokens, "x", s.columns));
    Stream stream(Device{.threads = s.threads});
    const HostMatrix in = HostMatrix::normal(s.tokens, 2 * s.columns, 1, s.gap, 3);
    HostMatrix h(s.tokens, s.columns, s.gap + 1);
    swiglu_forward(stream, in.view, h.view);
    EXPECT_LT(relative_error(h, reference(Matrix64(in))), 1e-6);
    EXPECT_TRUE(h.gaps_untouched());
  }
}

// The copy is the dropped output, and the LoRA path's way back the same as one over an h in memory.
TEST(SwiGlu, DroppedCopyAndLoraPath) {
  for (const float rate : {0.0F, 0.4F}) {
    constexpr int64_t kTokens = 9;
    constexpr int64_t kColumns = 21;
    constexpr int64_t kRank = 3;
    Stream stream(Device{.threads = 2});
    std::vector<int64_t> samples(kTokens, 5);
    std::vector<int32_t> positions;
    for (int32_t t = 0; t < kTokens; ++t) positions.push_back(t);
    Dropout mask;
    mask.rate = rate;
    mask.seed = 3;
    mask.samples = tensor_of(samples.data(), 1, kTokens);
    mask.positions = tensor_of(positions.data(), 1, kTokens);
    const HostMatrix in = HostMatrix::normal(kTokens, 2 * kColumns, 1, 1);
    HostMatrix h(kTokens, kColumns), dropped(kTokens, kColumns, 2), alone(kTokens, kColumns), want = h;
    swiglu_forward(stream, in.view, h.view, {mask, dropped.view});
    swiglu_forward(stream, in.view, {}, {mask, alone.view});
    dropout(stream, mask, h.view, want.view);
    EXPECT_EQ(dropped.values(), want.values());
    EXPECT_EQ(alone.values(), want.values());
    EXPECT_TRUE(dropped.gaps_untouched());

    const HostMatrix dout = HostMatrix::normal(kTokens, kRank, 2), a = HostMatrix::normal(kRank, kColumns, 3);
    const HostMatrix dh = HostMatrix::normal(kTokens, kColumns, 4);
    HostMatrix da(kRank, kColumns, 0, 0.5F), da_want = da, through = dh, used_up = dh;
    HostMatrix got(kTokens, 2 * kColumns), dgate_up = got;
    const int64_t bytes = swiglu_scratch_bytes(Device{}, kTokens, kColumns);
    Arena scratch("swiglu", Device{}, bytes);
    lora_down_backward(stream, {dout.view, a.view, 0.25F, mask, da_want.view}, h.view, through.view, scratch);
    swiglu_backward(stream, {through.view, in.view, dgate_up.view}, scratch);
    swiglu_backward(stream, {used_up.view, in.view, got.view, {dout.view, a.view, 0.25F, mask, da.view}},
                    scratch);
    EXPECT_EQ(got.values(), dgate_up.values());
    EXPECT_EQ(da.values(), da_want.values());
    EXPECT_NE(da.values(), HostMatrix(kRank, kColumns, 0, 0.5F).values());
    EXPECT_EQ(scratch.used(), 0);
    EXPECT_LE(scratch.peak(), bytes);
  }
}

// So many tokens that they go in several blocks: what lora_down_backward over an h in memory gives.
TEST(SwiGlu, TheLoraPathIsTheSameInBlocks) {
  constexpr int64_t kTokens = 150;
  constexpr int64_t kColumns = 500;
  constexpr int64_t kRank = 7;
  Stream stream(Device{});
  std::vector<int64_t> samples;
  std::vector<int32_t> positions;
  for (int32_t t = 0; t < kTokens; ++t) {
    samples.push_back(t / 20);
    positions.push_back(t % 20);
  }
  Dropout mask;
  mask.rate = 0.25F;
  mask.samples = tensor_of(samples.data(), 1, kTokens);
  mask.positions = tensor_of(positions.data(), 1, kTokens);
  const HostMatrix in = HostMatrix::normal(kTokens, 2 * kColumns, 1, 1);
  const HostMatrix dout = HostMatrix::normal(kTokens, kRank, 2), a = HostMatrix::normal(kRank, kColumns, 3);
  HostMatrix h(kTokens, kColumns), through = HostMatrix::normal(kTokens, kColumns, 4), used_up = through;
  HostMatrix da(kRank, kColumns, 0, 0.5F), da_want = da, got(kTokens, 2 * kColumns, 2), want = got;
  Arena scratch("swiglu", Device{}, swiglu_scratch_bytes(Device{}, kTokens, kColumns));
  swiglu_forward(stream, in.view, h.view);
  lora_down_backward(stream, {dout.view, a.view, 0.25F, mask, da_want.view}, h.view, through.view, scratch);
  swiglu_backward(stream, {through.view, in.view, want.view}, scratch);
  swiglu_backward(stream, {used_up.view, in.view, got.view, {dout.view, a.view, 0.25F, mask, da.view}},
                  scratch);
  EXPECT_LT(relative_error(got, Matrix64(want)), 1e-6);
  EXPECT_LT(relative_error(da, Matrix64(da_want)), 1e-6);
  EXPECT_TRUE(got.gaps_untouched());
}

TEST(SwiGlu, BackwardMatchesTheReference) {
  Arena nothing("none", Device{}, 0);
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(str_cat(s.tokens, "x", s.columns));
    Stream stream(Device{.threads = s.threads});
    HostMatrix in = HostMatrix::normal(s.tokens, 2 * s.columns, 1, s.gap, 3);
    const HostMatrix dh = HostMatrix::normal(s.tokens, s.columns, 2);
    Matrix64 want(s.tokens, 2 * s.columns);
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t c = 0; c < s.columns; ++c) {
        const double g = in(t, c);
        const double e = std::exp(-g);
        want(t, c) =
            dh(t, c) * static_cast<double>(in(t, s.columns + c)) * (1 + e + g * e) / (1 + e) / (1 + e);
        want(t, s.columns + c) = dh(t, c) * g / (1 + e);
      }
    }
    HostMatrix out(s.tokens, 2 * s.columns, 1);
    swiglu_backward(stream, {dh.view, in.view, out.view}, nothing);
    EXPECT_LT(relative_error(out, want), 1e-6);
    EXPECT_TRUE(out.gaps_untouched());
    swiglu_backward(stream, {dh.view, in.view, in.view}, nothing);  // in place
    EXPECT_EQ(in.values(), out.values());
  }
}

TEST(SwiGlu, BackwardIsTheDerivative) {
  Arena nothing("none", Device{}, 0);
  Stream stream(Device{});
  HostMatrix in = HostMatrix::normal(3, 10, 1);
  const HostMatrix dh = HostMatrix::normal(3, 5, 2);
  HostMatrix got(3, 10);
  swiglu_backward(stream, {dh.view, in.view, got.view}, nothing);
  const auto loss = [&](const Matrix64& x) { return dot(reference(x).data, dh.values()); };
  EXPECT_LT(relative_error(got, finite_differences(Matrix64(in), loss)), 1e-4);
  HostMatrix h(3, 5);
  const auto run = [&] {
    swiglu_forward(stream, in.view, h.view);
    return dot(h.values(), dh.values());
  };
  EXPECT_LT(relative_error(got, finite_differences_f32(in, run)), 1e-2);
}

TEST(SwiGlu, NotANumberStays) {
  Stream stream(Device{});
  HostMatrix in(1, 40, 0, 1.0F);
  in(0, 3) = std::numeric_limits<float>::quiet_NaN();
  HostMatrix h(1, 20);
  swiglu_forward(stream, in.view, h.view);
  EXPECT_TRUE(std::isnan(h(0, 3)));
  EXPECT_FALSE(std::isnan(h(0, 4)));
}

}  // namespace
}  // namespace pesc
