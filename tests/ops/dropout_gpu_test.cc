// Dropout (bit for bit), initial values and the LoRA down projection on the GPU against their CPU twins.
#include <gtest/gtest.h>

#include "ops/init.h"
#include "ops/lora.h"
#include "tests/ops/token_identities.h"

namespace pesc {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

struct Case {
  int64_t rows, cols, gap, column0;
  float rate;
};
const Case kCases[] = {{5, 64, 0, 0, 0.1F}, {33, 130, 2, 4, 0.5F},  {7, 65, 3, 3, 0.1F},
                       {9, 96, 8, 6, 0.9F}, {1, 1, 0, 1, 0.3F},     {0, 64, 0, 0, 0.1F},
                       {4, 40, 0, 0, 0.0F}, {500, 24, 0, 8, 0.05F}, {6, 4096, 0, 1 << 20, 0.1F}};

class DropoutGpu : public GpuTwin {};

TEST_F(DropoutGpu, MasksAreBitForBitThoseOfTheCpu) {
  for (const DType t : kTypes) {
    for (const auto& [rows, cols, gap, column0, rate] : kCases) {
      Identities id(gpu(), rows);
      const HostMatrix x = rounded(HostMatrix::normal(rows, cols, 1, gap), t);
      HostMatrix want(rows, cols, gap);
      dropout(cpu, id.on_cpu(rate, column0), x.view, want.view);
      const OnGpu gx(gpu(), x, t), gy(gpu(), HostMatrix(rows, cols, gap), t);
      dropout(gpu(), id.on_gpu(rate, column0), gx.view, gy.view);
      const std::string name = str_cat(shape_name(t, rows, cols, gap), " from column ", column0);
      EXPECT_EQ(gy.host().data, rounded(want, t).data) << name;
      dropout(gpu(), id.on_gpu(rate, column0), gx.view, gx.view);
      EXPECT_EQ(gx.host().data, gy.host().data) << name << ", in place";
    }
  }
}

TEST_F(DropoutGpu, DropoutWithAResidualMatchesTheCpu) {
  for (const DType t : kTypes) {
    for (const auto& [rows, cols, gap, column0, rate] : kCases) {
      Identities id(gpu(), rows);
      const HostMatrix x = rounded(HostMatrix::normal(rows, cols, 1, gap), t);
      const HostMatrix f = rounded(HostMatrix::normal(rows, cols, 2, gap), t);
      HostMatrix masked = f, sum(rows, cols, gap);
      dropout_residual(cpu, id.on_cpu(rate, column0), x.view, masked.view, sum.view, masked.view);
      const auto run = [&]() -> Outputs {
        const OnGpu gx(gpu(), x, t), gf(gpu(), f, t), gsum(gpu(), HostMatrix(rows, cols, gap), t);
        const OnGpu gapart(gpu(), HostMatrix(rows, cols, gap), t),
            gsame(gpu(), HostMatrix(rows, cols, gap), t);
        dropout_residual(gpu(), id.on_gpu(rate, column0), gx.view, gf.view, gsame.view, gapart.view);
        dropout_residual(gpu(), id.on_gpu(rate, column0), gx.view, gf.view, gsum.view, gf.view);
        const std::string name = shape_name(t, rows, cols, gap);
        EXPECT_TRUE(same_bits(gapart.host(), gf.host()) && same_bits(gsame.host(), gsum.host())) << name;
        return {gf.host(), gsum.host()};
      };
      compare(shape_name(t, rows, cols, gap), run, {masked, sum}, bound(t));
    }
  }
}

TEST_F(DropoutGpu, DropoutThatIsAddedMatchesTheCpu) {
  for (const DType t : kTypes) {
    for (const auto& [rows, cols, gap, column0, rate] : kCases) {
      Identities id(gpu(), rows);
      const HostMatrix x = rounded(HostMatrix::normal(rows, cols, 1, gap), t);
      const HostMatrix before = rounded(HostMatrix::normal(rows, cols, 2, gap), t);
      HostMatrix want = before;
      dropout_add(cpu, id.on_cpu(rate, column0), x.view, want.view);
      const auto run = [&]() -> Outputs {
        const OnGpu gx(gpu(), x, t), gy(gpu(), before, t);
        dropout_add(gpu(), id.on_gpu(rate, column0), gx.view, gy.view);
        const OnGpu gout(gpu(), HostMatrix(rows, cols, gap), t);
        dropout_sum(gpu(), id.on_gpu(rate, column0), gx.view, OnGpu(gpu(), before, t).view, gout.view);
        EXPECT_TRUE(same_bits(gout.host(), gy.host())) << shape_name(t, rows, cols, gap);
        return {gy.host()};
      };
      compare(shape_name(t, rows, cols, gap), run, {want}, bound(t));
    }
  }
}

class InitGpu : public GpuTwin {};

TEST_F(InitGpu, PiecesAreThoseOfTheCpu) {
  struct Place {
    int64_t rows, cols, gap, row0, col0, global_cols;
  };
  for (const Place& p : {Place{7, 33, 2, 0, 0, 33}, Place{5, 8, 0, 3, 5, 21}, Place{1, 4000, 0, 0, 0, 4000},
                         Place{0, 4, 0, 0, 0, 4}, Place{3, 6, 0, int64_t{1} << 22, 1, 4099}}) {
    const auto piece = [&](const Tensor& out) {
      return InitPiece{out, 0xFEDCBA9876543210, 0x0123456789ABCDEF, p.row0, p.col0, p.global_cols};
    };
    HostMatrix uniform(p.rows, p.cols, p.gap), normal(p.rows, p.cols, p.gap);
    init_uniform(cpu, piece(uniform.view), 0.37F);
    init_normal(cpu, piece(normal.view), 0.02F);
    const OnGpu guniform(gpu(), HostMatrix(p.rows, p.cols, p.gap));
    init_uniform(gpu(), piece(guniform.view), 0.37F);
    EXPECT_EQ(guniform.host().data, uniform.data) << p.rows << "x" << p.cols;
    const auto run = [&]() -> Outputs {
      const OnGpu gnormal(gpu(), HostMatrix(p.rows, p.cols, p.gap));
      init_normal(gpu(), piece(gnormal.view), 0.02F);
      return {gnormal.host()};
    };
    compare(str_cat(p.rows, "x", p.cols), run, {normal}, 1e-7);
  }
}

class LoraGpu : public GpuTwin {};

TEST_F(LoraGpu, ForwardAndBackwardMatchTheCpu) {
  struct Shape {
    int64_t tokens, columns, rank, gap;
    float rate;
  };
  for (const DType t : kTypes) {
    for (const auto& [tokens, columns, rank, gap, rate] :
         {Shape{65, 136, 16, 0, 0.1F}, Shape{9, 64, 8, 8, 0.0F}, Shape{40, 33, 5, 3, 0.5F},
          Shape{1, 24, 2, 0, 0.1F}, Shape{0, 16, 4, 0, 0.1F}, Shape{3001, 264, 64, 8, 0.1F},
          Shape{37, 72, 32, 0, 0.1F}, Shape{16, 128, 16, 8, 0.5F}, Shape{333, 136, 64, 0, 0.0F}}) {
      Identities id(gpu(), tokens);
      constexpr float kScale = 0.25F;
      const float spread = 1.0F / std::sqrt(static_cast<float>(columns));
      const HostMatrix x = rounded(HostMatrix::normal(tokens, columns, 1, gap), t);
      const HostMatrix a = rounded(HostMatrix::normal(rank, columns, 2, 0, spread), t);
      const HostMatrix dout = rounded(HostMatrix::normal(tokens, rank, 3, gap), t);
      const HostMatrix before = rounded(HostMatrix::normal(tokens, columns, 4, gap), t);
      HostMatrix out(tokens, rank, gap), da(rank, columns, 0, 0.5F), dx = before;
      Arena host = host_scratch(lora_scratch_bytes(Device{}, tokens, columns));
      HostMatrix exact(tokens, columns, gap);
      dropout(cpu, id.on_cpu(rate), x.view, exact.view);
      const HostMatrix dropped = rounded(exact, t);
      lora_down_forward(cpu, {dropped.view, a.view, kScale, out.view});
      lora_down_backward(cpu, {dout.view, a.view, kScale, id.on_cpu(rate), da.view}, x.view, dx.view, host);
      const auto run = [&]() -> Outputs {
        const OnGpu gx(gpu(), x, t), ga(gpu(), a, t), gdout(gpu(), dout, t), gdx(gpu(), before, t);
        const OnGpu gout(gpu(), HostMatrix(tokens, rank, gap), t),
            gda(gpu(), HostMatrix(rank, columns, 0, 0.5F));
        const int64_t bytes = lora_scratch_bytes(gpu().device(), tokens, columns, t);
        Arena memory = scratch(bytes);
        const OnGpu gdropped(gpu(), dropped, t);
        lora_down_forward(gpu(), {gdropped.view, ga.view, kScale, gout.view});
        lora_down_backward(gpu(), {gdout.view, ga.view, kScale, id.on_gpu(rate), gda.view}, gx.view, gdx.view,
                           memory);
        EXPECT_EQ(memory.used(), 0);
        EXPECT_LE(memory.peak(), bytes);
        return {gout.host(), gda.host(), gdx.host()};
      };
      // The masked input and the gradient before the mask are rounded too: three roundings in a row.
      compare(shape_name(t, tokens, columns, gap), run, {out, da, dx}, 2 * bound(t));
    }
  }
}

}  // namespace
}  // namespace pesc
