// FP8 GEMMs on Hopper: the error of fast and of full accumulation against float64 sums of the same operands, over as many
// products as the linears of Llama-2 7B have.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "ops/core/e4m3.h"
#include "ops/fp8.h"
#include "ops/fp8_gemm.h"
#include "tests/ops/fp8_reference.h"
#include "tests/ops/gpu_twin.h"

namespace pesc {
namespace {

struct SumErrors {
  double error;      // |out - sum| / |sum| over all
  double shrinkage;  // by how much the outputs are smaller than the sums on average
};
SumErrors errors_of(const HostMatrix& out, const std::vector<double>& sums) {
  double difference = 0, along = 0, norm = 0;
  size_t at = 0;
  for (int64_t r = 0; r < out.view.rows; ++r) {
    for (int64_t c = 0; c < out.view.cols; ++c, ++at) {
      const double got = static_cast<double>(out(r, c));
      difference += (got - sums[at]) * (got - sums[at]);
      along += got * sums[at];
      norm += sums[at] * sums[at];
    }
  }
  return {std::sqrt(difference / norm), 1 - along / norm};
}

class Fp8GemmGpu : public GpuTwin {
 protected:
  static constexpr int64_t kTokens = 64, kColumns = 128;

  void SetUp() override {
    GpuTwin::SetUp();
    if (IsSkipped()) return;
    if (!multiplies_fp8(cuda::device_info(0)))
      GTEST_SKIP() << "no GPU test: FP8 GEMMs need compute capability 9.0";
  }

  // Rows of normal values as codes, on the GPU; `values` gets what the codes stand for.
  struct Rows {
    Arena memory;
    Fp8Rows rows;
    Rows(Stream& gpu, const HostMatrix& m, std::vector<double>& values)
        : memory("rows", gpu.device(), m.view.rows * (m.view.cols + 8) + (1 << 12)) {
      Codes codes(m.view.rows, m.view.cols, 0);
      HostMatrix scales(m.view.rows, 1);
      Stream cpu(Device{.threads = 2});
      fp8_quantize(cpu, {.x = m.view, .codes = codes.view, .scales = scales.view});
      rows = {memory.allocate(m.view.rows, m.view.cols, DType::kE4M3), memory.allocate(m.view.rows, 1)};
      copy_from_host(gpu, codes.bytes().data(), rows.codes);
      copy_from_host(gpu, scales.data.data(), rows.scales);
      for (int64_t r = 0; r < m.view.rows; ++r)
        for (int64_t c = 0; c < m.view.cols; ++c)
          values.push_back(static_cast<double>(e4m3_to_f32(codes(r, c))) * static_cast<double>(scales(r, 0)));
    }
  };
};

// e4m3 has three bits of mantissa: a product of two rounded values is off by 2 to 4 %, and so is a sum of independent ones.
// The tensor cores add 32 products at a time to a sum of 14 bits and cut off what is below, towards zero: half of 2^-13 of
// the sum a time. A sum of k products grows as a root, so two thirds of k / 32 such steps are in the end: 0.5 % for 4096
// products, 2.8 % for 22016 were the sum cut off at its own last bit each time. Full accumulation cuts off sums of 128
// products only, four steps each, and adds those up in float32.
TEST_F(Fp8GemmGpu, AccumulationIsWithinItsBound) {
  for (const int64_t k : {128, 4096, 11008, 12288, 22016}) {
    const HostMatrix x = HostMatrix::normal(kTokens, k, 1), w = HostMatrix::normal(kColumns, k, 2, 0, 0.02F);
    std::vector<double> a, b, sums, exact;
    const Rows tokens(gpu(), x, a), weight(gpu(), w, b);
    for (int64_t i = 0; i < kTokens; ++i) {
      for (int64_t j = 0; j < kColumns; ++j) {
        double sum = 0, unrounded = 0;
        for (int64_t l = 0; l < k; ++l) {
          sum += a[static_cast<size_t>(i * k + l)] * b[static_cast<size_t>(j * k + l)];
          unrounded += static_cast<double>(x(i, l)) * static_cast<double>(w(j, l));
        }
        sums.push_back(sum);
        exact.push_back(unrounded);
      }
    }
    HostMatrix rounded_sums(kTokens, kColumns);
    for (size_t i = 0; i < sums.size(); ++i) rounded_sums.data[i] = static_cast<float>(sums[i]);
    const double quantisation = errors_of(rounded_sums, exact).error;
    SumErrors errors[2] = {};
    for (const bool fast : {false, true}) {
      const OnGpu out(gpu(), HostMatrix(kTokens, kColumns));
      Arena memory = scratch(1 + fp8_gemm_scratch_bytes(gpu().device(), kColumns));
      fp8_gemm(gpu(),
               {.a = tokens.rows.codes,
                .a_scales = tokens.rows.scales,
                .b = weight.rows.codes,
                .b_scales = weight.rows.scales,
                .c = out.view,
                .accumulation = fast ? Fp8Accumulation::kFast : Fp8Accumulation::kFull},
               memory);
      errors[fast ? 1 : 0] = errors_of(out.host(), sums);
    }
    std::printf(
        "k = %5lld: quantisation %.3f %%, full accumulation %.4f %% (shrinks by %.4f %%), fast %.4f %% (%.4f "
        "%%)\n",
        static_cast<long long>(k), 100 * quantisation, 100 * errors[0].error, 100 * errors[0].shrinkage,
        100 * errors[1].error, 100 * errors[1].shrinkage);
    EXPECT_LT(errors[0].error, 4.0 / 8192);
    EXPECT_LT(errors[1].error, std::max(4.0, 2.0 / 3 * static_cast<double>(k) / 32) / 16384 + 1e-4);
    EXPECT_LT(quantisation, 0.045);
    // Why the model uses fast accumulation: squared, its error is less than a 64th of the operands'.
    EXPECT_LT(errors[1].error, quantisation / 8);
  }
}

}  // namespace
}  // namespace pesc
