#include "ops/low_rank.h"

#include <gtest/gtest.h>

#include "tests/ops/reference.h"

namespace pesc {
namespace {

TEST(LowRank, AddsTheProductOfItsFactors) {
  struct Shape {
    int64_t rows, rank, cols, gap;
  };
  for (const auto& [rows, rank, cols, gap] :
       {Shape{5, 3, 7, 0}, {1, 1, 1, 0}, {33, 8, 64, 3}, {0, 4, 8, 0}}) {
    Stream stream(Device{.threads = 2});
    const HostMatrix left = HostMatrix::normal(rows, rank, 1), right = HostMatrix::normal(rank, cols, 2);
    HostMatrix out = HostMatrix::normal(rows, cols, 3, gap);
    Matrix64 want(out);
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t c = 0; c < cols; ++c)
        for (int64_t e = 0; e < rank; ++e) want(t, c) += static_cast<double>(left(t, e)) * right(e, c);
    add_low_rank_term(stream, {left.view, right.view}, out.view);
    EXPECT_LE(relative_error(out, want), 1e-5) << rows << "x" << rank << "x" << cols;
    EXPECT_TRUE(out.gaps_untouched());
  }
}

TEST(LowRank, IsPresentWhereItsLeftFactorHasData) {
  const HostMatrix left(2, 3), right(3, 4);
  EXPECT_TRUE((LowRankTerm{left.view, right.view}.present()));
  EXPECT_FALSE(LowRankTerm{}.present());
}

}  // namespace
}  // namespace pesc
