// Cross entropy on the GPU against its CPU twin, on whole vocabularies and on slices.
#include <gtest/gtest.h>

#include "ops/cross_entropy.h"
#include "tests/ops/gpu_twin.h"
#include "tests/ops/reference.h"

namespace pesc {
namespace {

class CrossEntropyGpu : public GpuTwin {};

TEST_F(CrossEntropyGpu, TheThreeStepsMatchTheCpu) {
  struct Shape {
    int64_t rows, cols, gap, vocab_begin;
  };
  for (const DType t : {DType::kF32, DType::kBF16}) {
    for (const auto& [rows, cols, gap, begin] :
         {Shape{5, 64, 0, 0}, Shape{33, 1031, 0, 0}, Shape{7, 130, 2, 100}, Shape{3, 32000, 0, 0},
          Shape{1, 1, 0, 0}, Shape{0, 64, 0, 0}, Shape{6, 40, 8, 1000}, Shape{17, 96, 1, 20}}) {
      const HostMatrix logits = rounded(HostMatrix::normal(rows, cols, 1, gap, 4), t);
      // Targets within the slice, and beyond it on both sides.
      std::vector<int32_t> targets =
          random_ints(rows, static_cast<int32_t>(begin) - 20, static_cast<int32_t>(begin + cols) + 20, 3);
      if (rows > 0) targets[0] = static_cast<int32_t>(begin + cols) - 1;
      const Tensor host_targets = tensor_of(targets.data(), 1, rows);
      HostMatrix max(1, rows), sums(2, rows), loss(1, rows), grad = logits;
      cross_entropy_max(cpu, logits.view, max.view);
      cross_entropy_sums(cpu, logits.view, host_targets, begin, max.view, sums.view);
      cross_entropy_grad(cpu, {grad.view, host_targets, begin, max.view, sums.view, 0.125F, loss.view});
      const auto run = [&]() -> Outputs {
        const OnGpu glogits(gpu(), logits, t), gmax(gpu(), HostMatrix(1, rows)),
            gsums(gpu(), HostMatrix(2, rows));
        const OnGpu gloss(gpu(), HostMatrix(1, rows)), alone(gpu(), HostMatrix(1, rows));
        const ArrayOnGpu<int32_t> gtargets(gpu(), targets);
        cross_entropy_max(gpu(), glogits.view, gmax.view);
        EXPECT_EQ(gmax.host().data, max.data);
        cross_entropy_sums(gpu(), glogits.view, gtargets.view, begin, gmax.view, gsums.view);
        cross_entropy_grad(gpu(),
                           {glogits.view, gtargets.view, begin, gmax.view, gsums.view, 0.125F, gloss.view});
        cross_entropy_loss(gpu(), gsums.view, alone.view);
        EXPECT_EQ(gloss.host().data, alone.host().data);
        EXPECT_LE(relative_error(gsums.host().values(), sums.values()), 1e-5);
        EXPECT_LE(relative_error(gloss.host().values(), loss.values()), 1e-5);
        return {glogits.host()};
      };
      compare(shape_name(t, rows, cols, gap), run, {grad}, bound(t));
    }
  }
}

TEST_F(CrossEntropyGpu, ASliceWithoutColumnsIsNeutral) {
  const OnGpu logits(gpu(), HostMatrix(3, 0)), max(gpu(), HostMatrix(1, 3)),
      sums(gpu(), HostMatrix(2, 3, 0, 5));
  const ArrayOnGpu<int32_t> targets(gpu(), {1, 2, 3});
  cross_entropy_max(gpu(), logits.view, max.view);
  for (const double v : max.host().values()) EXPECT_EQ(v, -INFINITY);
  // The maximum of the other ranks.
  const OnGpu reduced(gpu(), HostMatrix(1, 3, 0, 2));
  cross_entropy_sums(gpu(), logits.view, targets.view, 10, reduced.view, sums.view);
  for (const double v : sums.host().values()) EXPECT_EQ(v, 0);
}

TEST_F(CrossEntropyGpu, WhatIsNotANumberShows) {
  HostMatrix logits = HostMatrix::normal(2, 70, 1);
  logits(0, 33) = NAN;
  const OnGpu glogits(gpu(), logits), max(gpu(), HostMatrix(1, 2)), sums(gpu(), HostMatrix(2, 2));
  const OnGpu loss(gpu(), HostMatrix(1, 2));
  const ArrayOnGpu<int32_t> targets(gpu(), {0, 0});
  cross_entropy_max(gpu(), glogits.view, max.view);
  cross_entropy_sums(gpu(), glogits.view, targets.view, 0, max.view, sums.view);
  cross_entropy_loss(gpu(), sums.view, loss.view);
  EXPECT_TRUE(std::isnan(loss.host()(0, 0)));
  EXPECT_TRUE(std::isfinite(loss.host()(0, 1)));
}

}  // namespace
}  // namespace pesc
