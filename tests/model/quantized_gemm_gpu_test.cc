// The GEMMs with FP8 and NF4 weights on the GPU against the CPU's from the same bytes: dequantised to bf16 and
// float32, with and without LoRA's B beside the weight; and on Hopper as FP8 products.
#include <cmath>
#include <limits>

#include "model/quantized_gemm.h"
#include "model/quantized_weights.h"
#include "ops/fp8_gemm.h"
#include "tests/model/quantized_linear.h"
#include "tests/ops/gpu_twin.h"

namespace pesc {
namespace {

class QuantizedGemmGpu : public GpuTwin {
 protected:
  struct Case {
    int64_t tokens, out, in, lora;
  };

  // `tolerance` is of the largest result.
  void run(const FrozenType& type, const Case& c, double tolerance) {
    const DType compute = type.compute;
    const HostMatrix w = uneven_weight(c.out, c.in, 1);
    const QuantizedLinear on_gpu(gpu(), type, w, c.lora);
    const int64_t beside = on_gpu.linear.lora_columns();
    EXPECT_EQ(beside, compute == DType::kBF16 && c.lora % 8 == 0 && c.in % 8 == 0 ? c.lora : 0);
    const HostMatrix b = rounded(HostMatrix::normal(c.out, beside, 2, 0, 0.1F), compute);
    if (beside > 0) {
      std::vector<uint16_t> narrow;
      for (const float v : b.data) narrow.push_back(to_bf16(v));
      copy_from_host(gpu(), narrow.data(), on_gpu.linear.lora_b({0, c.out}, {0, beside}));
    }
    // The same bytes, multiplied in float32 by the CPU; B beside them.
    const QuantizedLinear on_cpu(cpu, FrozenType(type.format), w, 0);
    const Matrix64 values = on_cpu.dequantized();
    HostMatrix both(c.out, c.in + beside);
    for (int64_t i = 0; i < c.out; ++i) {
      for (int64_t j = 0; j < c.in; ++j) both(i, j) = static_cast<float>(values(i, j));
      for (int64_t j = 0; j < beside; ++j) both(i, c.in + j) = b(i, j);
    }
    FrozenLinear twin = FrozenLinear::of(both.view.col_range(0, c.in));
    if (beside > 0) twin.weight_and_lora_b = both.view;
    Arena host = host_scratch(1);
    const HostMatrix x = rounded(HostMatrix::normal(c.tokens, c.in + beside, 3), compute);
    const HostMatrix residual = rounded(HostMatrix::normal(c.tokens, c.out, 4), compute);
    const HostMatrix dy = rounded(HostMatrix::normal(c.tokens, c.out, 5), compute);
    HostMatrix y(c.tokens, c.out), sum(c.tokens, c.out), dx(c.tokens, c.in + beside);
    linear_forward(cpu, twin, ConcatView(x.view, c.in), y.view, host);
    linear_forward(cpu, twin, ConcatView(x.view, c.in), sum.view, host, residual.view);
    linear_backward_input(cpu, twin, dy.view, ConcatView(dx.view, c.in), host);

    Arena memory = scratch(1 + linear_scratch_bytes(gpu().device(), on_gpu.linear, c.tokens));
    const auto compute_on_gpu = [&]() -> Outputs {
      const float nan = std::numeric_limits<float>::quiet_NaN();
      const HostMatrix out(c.tokens, c.out, 0, nan), in(c.tokens, c.in + beside, 0, nan);
      const OnGpu gx(gpu(), x, compute), gr(gpu(), residual, compute), gdy(gpu(), dy, compute);
      const OnGpu gy(gpu(), out, compute), gsum(gpu(), out, compute), gdx(gpu(), in, compute);
      linear_forward(gpu(), on_gpu.linear, ConcatView(gx.view, c.in), gy.view, memory);
      linear_forward(gpu(), on_gpu.linear, ConcatView(gx.view, c.in), gsum.view, memory, gr.view);
      linear_backward_input(gpu(), on_gpu.linear, gdy.view, ConcatView(gdx.view, c.in), memory);
      return {gy.host(), gsum.host(), gdx.host()};
    };
    compare(
        str_cat(frozen_format_name(type.format), type.gemm == FrozenGemm::kFP8 ? " in FP8 " : " ",
                dtype_name(compute), " ", c.out, "x", c.in, ", ", beside, " beside, ", c.tokens, " tokens"),
        compute_on_gpu, {y, sum, dx}, tolerance);
  }
  const std::vector<Case> cases_ = {{64, 128, 96, 0}, {64, 128, 96, 16}, {130, 264, 520, 24},
                                    {33, 40, 56, 3},  {1, 16, 16, 8},    {5, 37, 29, 0}};
};

// Where they are quantised does not matter, cut as tensor parallelism cuts them: one, some or all columns.
TEST_F(QuantizedGemmGpu, QuantisedThereAreTheBytesOfTheCpu) {
  const auto bytes = [](Stream& stream, const Tensor& t) {
    std::vector<uint8_t> out(static_cast<size_t>(t.bytes()));
    if (t.size() > 0) copy_to_host(stream, t, out.data());
    return out;
  };
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    for (const FrozenGemm gemm : {FrozenGemm::kDequantized, FrozenGemm::kFP8}) {
      for (const auto& [out, in] : {std::pair<int64_t, int64_t>{1100, 4096}, {90, 300}, {64, 129}}) {
        const HostMatrix w = uneven_weight(out, in, 1);
        for (const Cut& cut : {Cut{}, {out / 3, out / 2, 0, in}, {0, out, in / 2, in / 4}, {0, out, 5, 1}}) {
          SCOPED_TRACE(str_cat(frozen_format_name(format), gemm == FrozenGemm::kFP8 ? " for FP8 " : " ", out,
                               "x", in, ", from [", cut.row, ", ", cut.col, "]"));
          const QuantizedLinear here(cpu, {format, DType::kF32, gemm}, w, 0, cut);
          const QuantizedLinear there(gpu(), {format, DType::kBF16, gemm}, w, 0, cut);
          const FrozenLinear &a = here.linear, &b = there.linear;
          for (const auto& [want, got] : {std::pair(a.weight, b.weight),
                                          {a.scales, b.scales},
                                          {a.nf4.codes, b.nf4.codes},
                                          {a.nf4.absmax, b.nf4.absmax},
                                          {a.nf4.nested, b.nf4.nested},
                                          {a.nf4.first, b.nf4.first}})
            EXPECT_EQ(bytes(gpu(), got), bytes(cpu, want));
        }
      }
    }
  }
}

TEST_F(QuantizedGemmGpu, DequantisedAgreesWithTheCpu) {
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    for (const Case& c : cases_) {
      run({format, DType::kF32}, c, bound(DType::kF32));
      // A bf16 result and sum are rounded; NF4's values are rounded to bf16 before, an error of 2^-9 each, whose
      // sum is well below that of the result's rounding.
      run({format, DType::kBF16}, c, 3 * bound(DType::kBF16));
    }
  }
}

// A token's values are rounded to four bits: 2^-4 of a power of two at most, 2^-5 / sqrt(3) = 1.8 % of a value
// on average; NF4's weights as much again. The error of a sum of independent ones is 1.8 % (2.6 %) of its
// deviation; the worst of some thousand sums has 4 deviations, and the largest sum, by which it is divided, has
// 3 or more; so 2.4 % (3.5 %), twice that for few or uneven terms.
TEST_F(QuantizedGemmGpu, InFp8AgreesWithTheCpu) {
  if (!multiplies_fp8(cuda::device_info(0)))
    GTEST_SKIP() << "no GPU test: FP8 GEMMs need compute capability 9.0";
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4})
    for (const DType compute : {DType::kBF16, DType::kF32})
      for (const Case& c : cases_)
        run({format, compute, FrozenGemm::kFP8}, c, format == FrozenFormat::kFP8 ? 0.05 : 0.07);
}

// The same operands in the CPU's plain form leave the GPU's sums alone. A tensor core of Hopper adds 32 products of FP8 to
// a sum of about 14 bits, which costs up to 2^-13 of it, always towards zero. Fast accumulation keeps that sum to the end:
// with k = 4096 that is 128 additions, of half of 2^-13 on average, to a sum that grows to its size as a root: two
// thirds of 128 * 2^-14. With k = 272 it is nine additions, each of at most 2^-13. Both directions use it.
TEST_F(QuantizedGemmGpu, InFp8AgreesWithThePlainForm) {
  if (!multiplies_fp8(cuda::device_info(0)))
    GTEST_SKIP() << "no GPU test: FP8 GEMMs need compute capability 9.0";
  constexpr int64_t kTokens = 130, kOut = 272, kIn = 4096;
  const HostMatrix w = uneven_weight(kOut, kIn, 1);
  const FrozenType type{FrozenFormat::kFP8, DType::kF32, FrozenGemm::kFP8};
  const QuantizedLinear theirs(gpu(), type, w, 0), ours(cpu, type, w, 0);
  const HostMatrix x = HostMatrix::normal(kTokens, kIn, 3), dy = HostMatrix::normal(kTokens, kOut, 4);
  HostMatrix y(kTokens, kOut), dx(kTokens, kIn);
  Arena host = host_scratch(1 + linear_scratch_bytes(cpu.device(), ours.linear, kTokens));
  linear_forward(cpu, ours.linear, ConcatView(x.view, kIn), y.view, host);
  linear_backward_input(cpu, ours.linear, dy.view, ConcatView(dx.view, kIn), host);
  Arena memory = scratch(1 + linear_scratch_bytes(gpu().device(), theirs.linear, kTokens));
  const OnGpu gx(gpu(), x), gdy(gpu(), dy), gy(gpu(), y), gdx(gpu(), dx);
  linear_forward(gpu(), theirs.linear, ConcatView(gx.view, kIn), gy.view, memory);
  linear_backward_input(gpu(), theirs.linear, gdy.view, ConcatView(gdx.view, kIn), memory);
  EXPECT_LT(relative_error(gy.host().values(), y.values()), 2.0 / 3 * 128 / 16384);
  EXPECT_LT(relative_error(gdx.host().values(), dx.values()), 9.0 / 8192);
}

}  // namespace
}  // namespace pesc
