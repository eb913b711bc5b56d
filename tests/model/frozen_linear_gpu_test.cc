// The GEMMs with a frozen weight on the GPU against their CPU twin, in each format: alone, and with LoRA's
// B beside the weight where the format has it there.
#include <limits>

#include "model/frozen_linear.h"
#include "tests/ops/gpu_twin.h"

namespace pesc {
namespace {

class FrozenLinearGpu : public GpuTwin {
 protected:
  struct Case {
    int64_t tokens, out, in, lora;
  };

  static DType type_of(FrozenFormat format) {
    return format == FrozenFormat::kF32 ? DType::kF32 : DType::kBF16;
  }

  // As the loader makes it; B comes from whoever owns it.
  FrozenLinear weight(Arena& memory, FrozenFormat format, const Case& c, const HostMatrix& w,
                      const HostMatrix& b) {
    const FrozenLinear linear = FrozenLinear::allocate(memory, format, c.out, c.in, c.lora);
    EXPECT_EQ(FrozenWriter(gpu(), linear).write(0, c.out, w.data.data()), -1);
    if (linear.lora_columns() > 0) {
      std::vector<uint16_t> narrow;
      for (const float v : b.data) narrow.push_back(to_bf16(v));
      copy_from_host(gpu(), narrow.data(), linear.lora_b({0, c.out}, {0, c.lora}));
    }
    return linear;
  }

  void run(FrozenFormat format, const Case& c) {
    const DType type = type_of(format);
    const HostMatrix w = rounded(HostMatrix::normal(c.out, c.in, 1), type);
    const HostMatrix b = rounded(HostMatrix::normal(c.out, c.lora, 2), type);
    Arena memory("weights", gpu().device(), (c.out * (c.in + c.lora) + 64) * 4);
    const FrozenLinear linear = weight(memory, format, c, w, b);
    const int64_t beside = linear.lora_columns();
    EXPECT_EQ(beside, format == FrozenFormat::kBF16 && c.lora % 8 == 0 && c.in % 8 == 0 ? c.lora : 0);
    Arena scratch("scratch", gpu().device(), 1 + linear_scratch_bytes(gpu().device(), linear, c.tokens));

    HostMatrix both(c.out, c.in + beside);
    for (int64_t i = 0; i < c.out; ++i) {
      for (int64_t j = 0; j < c.in; ++j) both(i, j) = w(i, j);
      for (int64_t j = 0; j < beside; ++j) both(i, c.in + j) = b(i, j);
    }
    FrozenLinear twin = FrozenLinear::of(both.view.col_range(0, c.in));
    if (beside > 0) twin.weight_and_lora_b = both.view;
    Arena host = host_scratch(1);

    const HostMatrix x = rounded(HostMatrix::normal(c.tokens, c.in + beside, 3), type);
    const HostMatrix residual = rounded(HostMatrix::normal(c.tokens, c.out, 4), type);
    const HostMatrix dy = rounded(HostMatrix::normal(c.tokens, c.out, 5), type);
    HostMatrix y(c.tokens, c.out), sum(c.tokens, c.out), dx(c.tokens, c.in + beside);
    linear_forward(cpu, twin, ConcatView(x.view, c.in), y.view, host);
    linear_forward(cpu, twin, ConcatView(x.view, c.in), sum.view, host, residual.view);
    linear_backward_input(cpu, twin, dy.view, ConcatView(dx.view, c.in), host);

    const auto on_gpu = [&]() -> Outputs {
      const float nan = std::numeric_limits<float>::quiet_NaN();
      const HostMatrix out(c.tokens, c.out, 0, nan), in(c.tokens, c.in + beside, 0, nan);
      const OnGpu gx(gpu(), x, type), gr(gpu(), residual, type), gdy(gpu(), dy, type);
      const OnGpu gy(gpu(), out, type), gsum(gpu(), out, type), gdx(gpu(), in, type);
      linear_forward(gpu(), linear, ConcatView(gx.view, c.in), gy.view, scratch);
      linear_forward(gpu(), linear, ConcatView(gx.view, c.in), gsum.view, scratch, gr.view);
      linear_backward_input(gpu(), linear, gdy.view, ConcatView(gdx.view, c.in), scratch);
      return {gy.host(), gsum.host(), gdx.host()};
    };
    // A product that is added to a residual is rounded twice in bf16 (gemm_gpu_test.cc); the product is no
    // larger than the sum by more than what the residual takes away, which is small beside sqrt(in).
    compare(str_cat(frozen_format_name(format), " ", c.out, "x", c.in, ", ", beside, " beside, ", c.tokens,
                    " tokens"),
            on_gpu, {y, sum, dx}, 3 * bound(type));
  }
};

TEST_F(FrozenLinearGpu, AgreesWithItsCpuTwin) {
  for (const FrozenFormat format : {FrozenFormat::kF32, FrozenFormat::kBF16}) {
    run(format, {64, 128, 96, 0});
    run(format, {64, 128, 96, 16});
    run(format, {130, 264, 520, 24});
    run(format, {33, 40, 56, 3});  // B is too narrow to stand beside the weight
    run(format, {1, 8, 8, 8});
  }
}

}  // namespace
}  // namespace pesc
