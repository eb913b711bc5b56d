// GEMMs on the GPU against their CPU twin: all transposes, odd shapes, strides that align to nothing,
// types.
#include "ops/gemm.h"
#include "ops/reduce.h"
#include "tests/ops/gpu_twin.h"

namespace pesc {
namespace {

struct Case {
  int64_t m, n, k;
  bool ta, tb;
  float alpha, beta;
  int64_t gap;
};

class GemmGpu : public GpuTwin {
 protected:
  // Where bf16 is added to, cuBLASLt rounds the product to bf16 and then the sum: on an H200 all of its first
  // eight kernels did for three shapes (99.9 % of the outputs were those of two roundings to the bit, 74 %
  // those of one). Half a unit in the last place of each is 1/256 of it.
  [[nodiscard]] static double bound_of(DType out, float beta, const HostMatrix& product,
                                       const HostMatrix& want) {
    if (out != DType::kBF16 || beta == 0) return bound(out);
    return bound(out) * (1 + largest(product) / largest(want));
  }
  [[nodiscard]] static double largest(const HostMatrix& m) {
    double top = 1e-30;
    for (const double v : m.values()) top = std::max(top, std::abs(v));
    return top;
  }

  void run(const Case& c, DType in, DType out) {
    const HostMatrix a = rounded(HostMatrix::normal(c.ta ? c.k : c.m, c.ta ? c.m : c.k, 1, c.gap), in);
    const HostMatrix b = rounded(HostMatrix::normal(c.tb ? c.n : c.k, c.tb ? c.k : c.n, 2, 2 * c.gap), in);
    const HostMatrix before = rounded(HostMatrix::normal(c.m, c.n, 3, c.gap), out);
    const Transpose ta = c.ta ? Transpose::kYes : Transpose::kNo;
    const Transpose tb = c.tb ? Transpose::kYes : Transpose::kNo;
    HostMatrix want = before, product(c.m, c.n);
    gemm(cpu, {a.view, ta, b.view, tb, want.view, c.alpha, c.beta});
    gemm(cpu, {a.view, ta, b.view, tb, product.view, c.alpha, 0});
    const auto on_gpu = [&]() -> Outputs {
      HostMatrix start = before;
      if (c.beta == 0) start.fill(std::numeric_limits<float>::quiet_NaN());
      const OnGpu ga(gpu(), a, in), gb(gpu(), b, in), gc(gpu(), start, out);
      gemm(gpu(), {ga.view, ta, gb.view, tb, gc.view, c.alpha, c.beta});
      return {gc.host()};
    };
    // Products of two bf16 values are exact in float32, so that only the roundings of the output are left.
    compare(str_cat(c.m, "x", c.n, "x", c.k, c.ta ? " a^T" : "", c.tb ? " b^T" : "", " beta ", c.beta,
                    " gap ", c.gap, " ", dtype_name(in), " into ", dtype_name(out)),
            on_gpu, {want}, bound_of(out, c.beta, product, want));
  }
  void run_types(const Case& c) {
    run(c, DType::kF32, DType::kF32);
    run(c, DType::kBF16, DType::kBF16);
    run(c, DType::kBF16, DType::kF32);
  }
};

TEST_F(GemmGpu, AllTransposesAndOddShapes) {
  for (const int64_t m : {1, 3, 65, 130})
    for (const int64_t n : {1, 8, 63})
      for (const int64_t k : {1, 16, 129})
        for (const bool ta : {false, true})
          for (const bool tb : {false, true})
            run_types({m, n, k, ta, tb, 0.5F, m % 2 == 0 ? 0.0F : 1.0F, k % 3});
}

TEST_F(GemmGpu, AlphaAndBetaScaleTheTerms) {
  for (const float alpha : {0.0F, 1.0F, -2.0F})
    for (const float beta : {0.0F, 1.0F, 0.25F}) run_types({33, 48, 20, false, true, alpha, beta, 4});
}

TEST_F(GemmGpu, LargeAndEmptyGemmsMatchTheCpu) {
  run_types({512, 384, 1024, false, true, 1, 0, 0});
  run_types({384, 512, 2048, true, false, 1, 1, 8});
  for (const float beta : {0.0F, 0.5F}) {
    run_types({5, 7, 0, false, true, 1, beta, 1});
    run_types({0, 7, 4, false, true, 1, beta, 0});
    run_types({5, 0, 4, true, true, 1, beta, 0});
  }
}

// The fastest of a few kernels: as exact as the first, with C added to once, and taken again from the record.
TEST_F(GemmGpu, ATimedKernelIsAsExactAsTheFirst) {
  const HostMatrix a = rounded(HostMatrix::normal(1024, 1024, 1), DType::kBF16);
  const HostMatrix b = rounded(HostMatrix::normal(1536, 1024, 2), DType::kBF16);
  Device device = gpu().device();
  device.kernel_choice = KernelChoice::kAutotuned;
  for (const DType out : {DType::kBF16, DType::kF32}) {
    std::string record;
    const HostMatrix before = rounded(HostMatrix::normal(1024, 1536, 3), out);
    HostMatrix want = before, product(1024, 1536);
    gemm(cpu, {.a = a.view, .b = b.view, .trans_b = Transpose::kYes, .c = want.view, .beta = 1});
    gemm(cpu, {.a = a.view, .b = b.view, .trans_b = Transpose::kYes, .c = product.view});
    Outputs got;
    for (int run = 0; run < 2; ++run) {
      Stream stream(device);
      Arena trials("trials", device, gemm_trial_bytes(device, 1024, 1536, out));
      set_gemm_trials(stream, &trials);
      set_gemm_choices(stream, record);
      const OnGpu ga(stream, a, DType::kBF16), gb(stream, b, DType::kBF16), gc(stream, before, out);
      gemm(stream, {.a = ga.view, .b = gb.view, .trans_b = Transpose::kYes, .c = gc.view, .beta = 1});
      got.push_back(gc.host());
      // Timed there, unless the record says which, and given back.
      EXPECT_EQ(trials.peak(), run == 0 ? trials.capacity() : 0);
      EXPECT_EQ(trials.used(), 0);
      const std::string now = gemm_choices(stream);
      EXPECT_EQ(std::count(now.begin(), now.end(), '\n'), 2) << now;
      if (run == 1) {
        EXPECT_EQ(now, record);
      }
      record = now;
    }
    EXPECT_LE(relative_error(got[0].values(), want.values()), bound_of(out, 1, product, want));
    EXPECT_TRUE(same_bits(got[0], got[1]));

    // A run that does not meet the product keeps its record, and so does one that meets another.
    Stream stream(device);
    set_gemm_choices(stream, record);
    EXPECT_EQ(gemm_choices(stream), record);
    const OnGpu ga(stream, a, DType::kBF16), gc(stream, HostMatrix(1024, 1024));
    gemm(stream, {.a = ga.view, .b = ga.view, .trans_b = Transpose::kYes, .c = gc.view});
    const std::string more = gemm_choices(stream);
    EXPECT_EQ(std::count(more.begin(), more.end(), '\n'), 3) << more;
    std::istringstream lines(record);
    for (std::string line; std::getline(lines, line);) EXPECT_NE(more.find(line), std::string::npos) << line;
  }
}

// Where the arenas have no room for what is added to, the library's first kernel is taken, whatever memory
// the device has left; GEMMs that write their output are timed in it.
TEST_F(GemmGpu, TimesNothingOutsideTheArenas) {
  const HostMatrix a = rounded(HostMatrix::normal(1024, 1024, 1), DType::kBF16);
  Device device = gpu().device();
  device.kernel_choice = KernelChoice::kAutotuned;
  Arena small("trials", device, gemm_trial_bytes(device, 1024, 1024, DType::kBF16) - Arena::kAlignment);
  for (Arena* trials : {static_cast<Arena*>(nullptr), &small}) {
    Stream stream(device);
    set_gemm_trials(stream, trials);
    const OnGpu ga(stream, a, DType::kBF16), gc(stream, a, DType::kBF16);
    gemm(stream, {.a = ga.view, .b = ga.view, .trans_b = Transpose::kYes, .c = gc.view, .beta = 1});
    const std::string choices = gemm_choices(stream);
    ASSERT_EQ(std::count(choices.begin(), choices.end(), '\n'), 2) << choices;
    EXPECT_TRUE(choices.ends_with(" 0\n")) << choices;
    EXPECT_EQ(small.peak(), 0);
  }
}

// Real batches have any number of tokens: kernels are chosen, and timed, once for each range of them.
TEST_F(GemmGpu, AnyNumberOfRows) {
  Device device = gpu().device();
  device.kernel_choice = KernelChoice::kAutotuned;
  Stream stream(device);
  const int64_t most = 5000, n = 768, k = 2048;
  const HostMatrix x = rounded(HostMatrix::normal(most, k, 1), DType::kBF16);
  const HostMatrix w = rounded(HostMatrix::normal(n, k, 2), DType::kBF16);
  const HostMatrix dy = rounded(HostMatrix::normal(most, n, 3), DType::kBF16);
  const OnGpu gx(stream, x, DType::kBF16), gw(stream, w, DType::kBF16), gdy(stream, dy, DType::kBF16);
  const OnGpu gy(stream, HostMatrix(most, n), DType::kBF16);
  const OnGpu gdw(stream, HostMatrix(n, k));
  for (int64_t rows = most; rows > 0; rows -= 49) {
    const auto first = [rows](const Tensor& t) { return t.row_range(0, rows); };
    linear_forward(stream, first(gx.view), gw.view, first(gy.view));
    linear_backward_weight(stream, first(gdy.view), first(gx.view), gdw.view, 0.0F);
  }
  const std::string choices = gemm_choices(stream);
  const auto lines = std::count(choices.begin(), choices.end(), '\n');
  EXPECT_GE(lines, 1 + 2 * 4);  // the version; 2048, 3072, 4096, 5120 tokens of either product
  EXPECT_LE(lines, 1 + 2 * 6) << choices;
  for (const int64_t rows : {4999, 2049, 1023, 700, 5}) {
    const auto first = [rows](const Tensor& t) { return t.row_range(0, rows); };
    HostMatrix y(rows, n), dw(n, k);
    linear_forward(cpu, first(x.view), w.view, y.view);
    linear_backward_weight(cpu, first(dy.view), first(x.view), dw.view);
    linear_forward(stream, first(gx.view), gw.view, first(gy.view));
    fill_zero(stream, gdw.view);
    linear_backward_weight(stream, first(gdy.view), first(gx.view), gdw.view);
    const OnGpu part(stream, HostMatrix(rows, n), DType::kBF16);
    copy(stream, first(gy.view), part.view);
    EXPECT_LE(relative_error(part.host().values(), y.values()), bound(DType::kBF16)) << rows;
    EXPECT_LE(relative_error(gdw.host().values(), dw.values()), bound(DType::kF32)) << rows;
  }
}

TEST_F(GemmGpu, CMayBeReadFromAnotherTensor) {
  for (const DType t : {DType::kF32, DType::kBF16}) {
    const HostMatrix a = rounded(HostMatrix::normal(70, 24, 1), t),
                     b = rounded(HostMatrix::normal(24, 40, 2), t);
    const HostMatrix from = rounded(HostMatrix::normal(70, 40, 3, 8), t);
    for (const float beta : {1.0F, 0.0F}) {
      HostMatrix want(70, 40);
      gemm(cpu, {.a = a.view, .b = b.view, .c = want.view, .beta = beta, .from = from.view});
      const auto run = [&]() -> Outputs {
        const OnGpu ga(gpu(), a, t), gb(gpu(), b, t), gfrom(gpu(), from, t),
            gc(gpu(), HostMatrix(70, 40, 0, NAN), t);
        gemm(gpu(), {.a = ga.view, .b = gb.view, .c = gc.view, .beta = beta, .from = gfrom.view});
        return {gc.host()};
      };
      compare(str_cat("from elsewhere, beta ", beta), run, {want}, bound(t));
    }
  }
}

// Sizes that share a kernel give what those with one of their own give.
TEST_F(GemmGpu, SizesThatShareAKernelGiveTheSameResult) {
  for (const DType t : {DType::kF32, DType::kBF16}) {
    for (const bool ta : {false, true}) {
      for (const int64_t n : {1000, 1, 77, 1024, 1025, 3}) {
        const int64_t m = ta ? 48 : n, k = ta ? n : 64;
        const HostMatrix a = rounded(HostMatrix::normal(ta ? k : m, ta ? m : k, 1), t);
        const HostMatrix b = rounded(HostMatrix::normal(k, 40, 2), t);
        Gemm g{.a = a.view, .trans_a = ta ? Transpose::kYes : Transpose::kNo, .b = b.view, .c = {}};
        HostMatrix want(m, 40);
        g.c = want.view;
        gemm(cpu, g);
        const auto run = [&]() -> Outputs {
          const OnGpu ga(gpu(), a, t), gb(gpu(), b, t), gc(gpu(), HostMatrix(m, 40, 0, NAN), t);
          Gemm on_gpu = g;
          on_gpu.a = ga.view;
          on_gpu.b = gb.view;
          on_gpu.c = gc.view;
          on_gpu.extent = Extent::kVaries;
          gemm(gpu(), on_gpu);
          return {gc.host()};
        };
        compare(str_cat("varying ", m, "x40x", k), run, {want}, bound(t));
      }
    }
  }
}

}  // namespace
}  // namespace pesc
