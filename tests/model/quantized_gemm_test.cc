// The GEMMs with FP8 and NF4 weights on the CPU, forward and input gradient, against float64 products of the
// dequantised operands; and FP8 products of quantised tokens, which a GPU computes, by the CPU's plain form.
// quantized_gemm_gpu_test.cc has the GPU's.
#include "model/quantized_gemm.h"

#include <gtest/gtest.h>

#include <limits>

#include "model/quantized_weights.h"
#include "ops/fp8.h"
#include "tests/model/quantized_linear.h"
#include "tests/ops/reference.h"

namespace pesc {
namespace {

struct Case {
  int64_t tokens, out, in;
};
const std::vector<Case> kCases = {{7, 48, 64}, {65, 37, 29}, {1, 1, 1}, {0, 16, 32}, {9, 3000, 400}};

TEST(QuantizedGemm, IsTheProductWithTheDequantisedWeight) {
  Stream stream(Device{.threads = 2});
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(str_cat(frozen_format_name(format), " ", c.tokens, " tokens, ", c.out, "x", c.in));
      const QuantizedLinear w(stream, format, uneven_weight(c.out, c.in, 1), 0);
      const Matrix64 values = w.dequantized();
      Arena scratch("scratch", Device{}, linear_scratch_bytes(stream.device(), w.linear, c.tokens));
      const HostMatrix x = HostMatrix::normal(c.tokens, c.in, 2, 3);
      const HostMatrix residual = HostMatrix::normal(c.tokens, c.out, 3);
      const HostMatrix dy = HostMatrix::normal(c.tokens, c.out, 4, 1);
      HostMatrix y(c.tokens, c.out, 5, NAN), sum(c.tokens, c.out, 0, NAN), dx(c.tokens, c.in, 2, NAN);
      linear_forward(stream, w.linear, ConcatView(x.view, c.in), y.view, scratch);
      linear_forward(stream, w.linear, ConcatView(x.view, c.in), sum.view, scratch, residual.view);
      linear_backward_input(stream, w.linear, dy.view, ConcatView(dx.view, c.in), scratch);
      Matrix64 want = product_nt(Matrix64(x), values);
      EXPECT_LT(relative_error(y, want), 1e-5);
      const Matrix64 more(residual);
      for (size_t i = 0; i < want.data.size(); ++i) want.data[i] += more.data[i];
      EXPECT_LT(relative_error(sum, want), 1e-5);
      EXPECT_LT(relative_error(dx, product_nn(Matrix64(dy), values)), 1e-5);
      EXPECT_TRUE(y.gaps_untouched() && dx.gaps_untouched());
      EXPECT_LE(scratch.peak(), linear_scratch_bytes(stream.device(), w.linear, c.tokens));
    }
  }
}

// x quantised row by row, as float64.
Matrix64 quantized(Stream& stream, const HostMatrix& x, const Tensor& column_scales = {}) {
  Codes codes(x.view.rows, x.view.cols, 0);
  HostMatrix scales(x.view.rows, 1), back(x.view.rows, x.view.cols);
  fp8_quantize(stream,
               {.x = x.view, .column_scales = column_scales, .codes = codes.view, .scales = scales.view});
  fp8_dequantize(stream, codes.view, scales.view, back.view);
  return Matrix64(back);
}

// With FrozenGemm::kFP8 both operands are FP8. The weight's are the same in both directions: dx is the product
// of dy diag(s), quantised, and the codes without their scales.
TEST(QuantizedGemm, InFp8IsTheProductOfBothQuantisedOperands) {
  Stream stream(Device{.threads = 2});
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    for (const Case& c : std::vector<Case>{{7, 48, 64}, {65, 37, 29}, {1, 1, 1}}) {
      SCOPED_TRACE(str_cat(frozen_format_name(format), " ", c.tokens, " tokens, ", c.out, "x", c.in));
      const QuantizedLinear w(stream, {format, DType::kF32, FrozenGemm::kFP8}, uneven_weight(c.out, c.in, 1),
                              0);
      Arena scratch("scratch", Device{}, linear_scratch_bytes(stream.device(), w.linear, c.tokens));
      const HostMatrix x = HostMatrix::normal(c.tokens, c.in, 2, 3);
      const HostMatrix dy = HostMatrix::normal(c.tokens, c.out, 4, 1);
      const HostMatrix residual = HostMatrix::normal(c.tokens, c.out, 3);
      HostMatrix y(c.tokens, c.out, 5, NAN), sum(c.tokens, c.out, 0, NAN), dx(c.tokens, c.in, 2, NAN);
      linear_forward(stream, w.linear, ConcatView(x.view, c.in), y.view, scratch);
      linear_forward(stream, w.linear, ConcatView(x.view, c.in), sum.view, scratch, residual.view);
      linear_backward_input(stream, w.linear, dy.view, ConcatView(dx.view, c.in), scratch);
      {
        // With codes that an operation made before, x and dy are not read.
        Arena more("scratch", Device{}, 2 * linear_scratch_bytes(stream.device(), w.linear, c.tokens));
        const Fp8Rows of_x = w.linear.input_codes(more, c.tokens);
        const Fp8Rows of_dy = w.linear.output_grad_codes(more, c.tokens);
        fp8_quantize_rows(stream, x.view, of_x);
        fp8_quantize_rows(stream, dy.view, of_dy);
        HostMatrix unread_x(c.tokens, c.in, 3, NAN), unread_dy(c.tokens, c.out, 1, NAN);
        HostMatrix same_y(c.tokens, c.out, 5, NAN), same_dx(c.tokens, c.in, 2, NAN);
        linear_forward(stream, w.linear, ConcatView(unread_x.view, c.in), same_y.view, scratch, {}, of_x);
        linear_backward_input(stream, w.linear, unread_dy.view, ConcatView(same_dx.view, c.in), scratch,
                              of_dy);
        EXPECT_EQ(same_y.values(), y.values());
        EXPECT_EQ(same_dx.values(), dx.values());
      }

      // NF4 is rounded to FP8 with the scales of its rows.
      HostMatrix values(c.out, c.in);
      const Matrix64 exact = w.dequantized();
      for (size_t i = 0; i < exact.data.size(); ++i) values.data[i] = static_cast<float>(exact.data[i]);
      const Matrix64 codes = quantized(stream, values);
      if (format == FrozenFormat::kFP8) {
        EXPECT_EQ(codes.data, exact.data);
      }
      Matrix64 want = product_nt(quantized(stream, x), codes);
      EXPECT_LT(relative_error(y, want), 1e-6);
      const Matrix64 more(residual);
      for (size_t i = 0; i < want.data.size(); ++i) want.data[i] += more.data[i];
      EXPECT_LT(relative_error(sum, want), 1e-6);
      Matrix64 unit = codes;
      for (int64_t r = 0; r < c.out; ++r)
        for (int64_t i = 0; i < c.in; ++i) unit(r, i) /= static_cast<double>(w.linear.scales.f32()[r]);
      EXPECT_LT(
          relative_error(dx, product_nn(quantized(stream, dy, w.linear.scales.reshaped(1, c.out)), unit)),
          1e-6);
      EXPECT_TRUE(y.gaps_untouched() && dx.gaps_untouched());
      // Tokens are rounded to four bits, an error of 2^-5 at most, 2^-5 / sqrt(3) on average; the sums of
      // independent errors stay near that of one.
      EXPECT_LT(relative_error(dx, product_nn(Matrix64(dy), codes)), 0.08);
      EXPECT_LE(scratch.peak(), linear_scratch_bytes(stream.device(), w.linear, c.tokens));
    }
  }
}

TEST(QuantizedGemm, HoldsSoManyBytes) {
  Stream stream((Device()));
  Arena plan = Arena::planning("plan");
  const auto bytes = [&](const FrozenType& type, int64_t out, int64_t in) {
    return static_cast<double>(FrozenLinear::allocate(plan, type, out, in, 0).bytes()) /
           static_cast<double>(out * in);
  };
  EXPECT_NEAR(bytes(FrozenFormat::kFP8, 4096, 4096), 1.001, 1e-4);
  EXPECT_NEAR(bytes(FrozenFormat::kNF4, 4096, 4096), 0.5 + 1 / 64.0 + 16 / 4096.0, 1e-3);
  // Rows of 16 codes, and 16 rows of them, are what the GPU takes; the plan knows.
  Arena small = Arena::planning("small");
  const FrozenLinear odd = FrozenLinear::allocate(small, FrozenFormat::kFP8, 17, 20, 0);
  EXPECT_EQ(odd.weight.cols, 20);
  EXPECT_EQ(odd.weight.ld, 32);
  EXPECT_EQ(odd.bytes(), 17 * 20 + 17 * 4);
}

TEST(QuantizedGemm, KeepsLoraBBesideAWeightThatIsComputedInBf16) {
  Arena plan = Arena::planning("plan");
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    const FrozenLinear w = FrozenLinear::allocate(plan, {format, DType::kBF16}, 48, 64, 16);
    EXPECT_EQ(w.lora_columns(), 16);
    EXPECT_EQ(w.lora_b({8, 24}, {0, 8}).rows, 16);
    EXPECT_EQ(w.lora_b({8, 24}, {0, 8}).cols, 8);
    EXPECT_EQ(w.rows(8, 24).lora_columns(), 16);
    EXPECT_EQ(FrozenLinear::allocate(plan, {format, DType::kBF16}, 48, 64, 3).lora_columns(), 0);
    EXPECT_EQ(FrozenLinear::allocate(plan, {format, DType::kF32}, 48, 64, 16).lora_columns(), 0);
  }
}

// The operations that write codes of a gradient multiply scales of columns into it as powers of two.
TEST(QuantizedGemm, ScalesOfAFolderArePassedToNoOtherOperation) {
  Arena memory("weights", Device{}, 1 << 20);
  FrozenType type{FrozenFormat::kFP8, DType::kF32, FrozenGemm::kFP8};
  EXPECT_TRUE(FrozenLinear::allocate(memory, type, 32, 64, 0).output_grad_codes(memory, 3).present());
  type.folder_scales = true;
  const FrozenLinear w = FrozenLinear::allocate(memory, type, 32, 64, 0);
  EXPECT_FALSE(w.output_grad_codes(memory, 3).present());
  EXPECT_TRUE(w.input_codes(memory, 3).present());
}

// The gradient is then quantised by the GEMM's own call, with dy diag(s) rounded to float32.
TEST(QuantizedGemm, InFp8TakesScalesOfAFolderThatAreNoPowersOfTwo) {
  Stream stream((Device()));
  constexpr int64_t kTokens = 7, kOut = 48, kIn = 64;
  const QuantizedLinear w(stream, {FrozenFormat::kFP8, DType::kF32, FrozenGemm::kFP8},
                          uneven_weight(kOut, kIn, 1), 0);
  FrozenLinear linear = w.linear;
  linear.type.folder_scales = true;
  for (int64_t r = 0; r < kOut; ++r) linear.scales.f32()[r] *= 1.0F + 0.013F * static_cast<float>(r);
  Arena scratch("scratch", Device{}, linear_scratch_bytes(stream.device(), linear, kTokens));
  const HostMatrix dy = HostMatrix::normal(kTokens, kOut, 4, 1);
  HostMatrix dx(kTokens, kIn, 2, NAN);
  linear_backward_input(stream, linear, dy.view, ConcatView(dx.view, kIn), scratch);
  Matrix64 unit = w.dequantized();  // with the scales as they are now
  for (int64_t r = 0; r < kOut; ++r)
    for (int64_t i = 0; i < kIn; ++i) unit(r, i) /= static_cast<double>(linear.scales.f32()[r]);
  EXPECT_LT(relative_error(dx, product_nn(quantized(stream, dy, linear.scales.reshaped(1, kOut)), unit)),
            1e-6);
  EXPECT_LE(scratch.peak(), linear_scratch_bytes(stream.device(), linear, kTokens));
}

}  // namespace
}  // namespace pesc
