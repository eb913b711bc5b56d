// Adding a low-rank term on the GPU against its CPU twin.
#include <gtest/gtest.h>

#include "ops/low_rank.h"
#include "tests/ops/gpu_twin.h"

namespace pesc {
namespace {

struct Shape {
  int64_t rows, rank, cols, gap;
};
// Rows that no four divide, odd widths and strides, no rows, more of them than go at once.
const Shape kShapes[] = {{64, 8, 64, 0}, {33, 5, 130, 2}, {7, 3, 65, 3},
                         {1, 1, 8, 0},   {0, 8, 64, 0},   {2501, 17, 96, 8}};

class LowRankGpu : public GpuTwin {};

TEST_F(LowRankGpu, AddsTheProductOfItsFactors) {
  for (const DType t : {DType::kF32, DType::kBF16}) {
    for (const auto& [rows, rank, cols, gap] : kShapes) {
      const HostMatrix left = HostMatrix::normal(rows, rank, 1), right = HostMatrix::normal(rank, cols, 2);
      const HostMatrix before = rounded(HostMatrix::normal(rows, cols, 3, gap), t);
      HostMatrix out = before;
      add_low_rank_term(cpu, {left.view, right.view}, out.view);
      const auto run = [&]() -> Outputs {
        const OnGpu gleft(gpu(), left), gright(gpu(), right), gout(gpu(), before, t);
        add_low_rank_term(gpu(), {gleft.view, gright.view}, gout.view);
        return {gout.host()};
      };
      compare(str_cat(shape_name(t, rows, cols, gap), ", rank ", rank), run, {out}, bound(t));
    }
  }
}

TEST_F(LowRankGpu, RefusesFactorsThatDoNotFit) {
  const OnGpu left(gpu(), HostMatrix(4, 3)), right(gpu(), HostMatrix(2, 8)), out(gpu(), HostMatrix(4, 8));
  EXPECT_THROW(add_low_rank_term(gpu(), {left.view, right.view}, out.view), InternalError);
}

}  // namespace
}  // namespace pesc
