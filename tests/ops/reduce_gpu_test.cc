// Data movements, sums and the embedding on the GPU against their CPU twins.
#include <gtest/gtest.h>

#include "ops/embedding.h"
#include "ops/reduce.h"
#include "tests/ops/gpu_twin.h"
#include "tests/ops/reference.h"

namespace pesc {
namespace {

struct Shape {
  int64_t rows, cols, gap;
};
const Shape kShapes[] = {{5, 64, 0},   {33, 130, 0}, {7, 65, 3}, {9, 96, 8},
                         {1, 1000, 5}, {0, 64, 0},   {3, 1, 0},  {700, 24, 8}};
constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

class ReduceGpu : public GpuTwin {};

TEST_F(ReduceGpu, FillsAndCopiesAreExact) {
  for (const DType t : kTypes) {
    for (const auto& [rows, cols, gap] : kShapes) {
      const HostMatrix x = rounded(HostMatrix::normal(rows, cols, 1, gap), t);
      const OnGpu gx(gpu(), x, t), packed(gpu(), HostMatrix(rows, cols), t);
      const OnGpu back(gpu(), HostMatrix(rows, cols, gap), t);
      copy(gpu(), gx.view, packed.view);
      copy(gpu(), packed.view, back.view);
      EXPECT_EQ(packed.host().values(), x.values());
      EXPECT_EQ(back.host().data, x.data);
      fill_zero(gpu(), back.view);
      EXPECT_EQ(back.host().data, HostMatrix(rows, cols, gap).data);
    }
  }
}

TEST_F(ReduceGpu, CastsAreExact) {
  for (const auto& [rows, cols, gap] : kShapes) {
    const HostMatrix x = HostMatrix::normal(rows, cols, 1, gap);
    const OnGpu wide(gpu(), x), narrow(gpu(), HostMatrix(rows, cols, gap), DType::kBF16);
    const OnGpu packed(gpu(), HostMatrix(rows, cols), DType::kBF16), back(gpu(), HostMatrix(rows, cols, gap));
    cast(gpu(), wide.view, narrow.view);
    cast(gpu(), narrow.view, packed.view);
    cast(gpu(), packed.view, back.view);
    EXPECT_EQ(narrow.host().values(), rounded(x, DType::kBF16).values());
    EXPECT_EQ(back.host().data, narrow.host().data);
  }
}

TEST_F(ReduceGpu, AdditionsAndBiasesMatchTheCpu) {
  for (const DType t : kTypes) {
    for (const auto& [rows, cols, gap] : kShapes) {
      const HostMatrix x = rounded(HostMatrix::normal(rows, cols, 1, gap), t);
      const HostMatrix y = rounded(HostMatrix::normal(rows, cols, 2, gap), t);
      const HostMatrix bias = rounded(HostMatrix::normal(1, cols, 3), t);
      HostMatrix added = y, biased = y, dbias(1, cols, 0, 0.5F);
      add(cpu, x.view, added.view);
      add_bias(cpu, bias.view, biased.view);
      bias_backward(cpu, x.view, dbias.view);
      const auto run = [&]() -> Outputs {
        const OnGpu gx(gpu(), x, t), gadded(gpu(), y, t), gbiased(gpu(), y, t), gbias(gpu(), bias, t);
        const OnGpu gdbias(gpu(), HostMatrix(1, cols, 0, 0.5F));
        add(gpu(), gx.view, gadded.view);
        add_bias(gpu(), gbias.view, gbiased.view);
        bias_backward(gpu(), gx.view, gdbias.view);
        return {gadded.host(), gbiased.host(), gdbias.host()};
      };
      compare(shape_name(t, rows, cols, gap), run, {added, biased, dbias}, bound(t));
    }
  }
}

TEST_F(ReduceGpu, GatherIsExact) {
  for (const DType t : kTypes) {
    for (const auto& [rows, cols, gap] : kShapes) {
      if (rows == 0) continue;
      for (const int64_t n : {int64_t{0}, int64_t{1}, 3 * rows}) {
        const HostMatrix in = rounded(HostMatrix::normal(rows, cols, 1, gap), t);
        std::vector<int32_t> index = random_ints(n, 0, static_cast<int32_t>(rows) - 1, 4);
        HostMatrix want(n, cols, gap);
        gather_rows(cpu, in.view, tensor_of(index.data(), 1, n), want.view);
        const OnGpu gin(gpu(), in, t), gout(gpu(), HostMatrix(n, cols, gap), t);
        const ArrayOnGpu<int32_t> gindex(gpu(), index);
        gather_rows(gpu(), gin.view, gindex.view, gout.view);
        EXPECT_EQ(gout.host().data, want.data) << shape_name(t, rows, cols, gap);
      }
    }
  }
}

TEST_F(ReduceGpu, GatherOfWideAndNarrowIntegers) {
  const std::vector<int64_t> wide = {int64_t{1} << 40, 2, -3};
  const std::vector<int32_t> index = {2, 0, 0, 1};
  const ArrayOnGpu<int64_t> in(gpu(), wide, 3, 1), out(gpu(), {9, 9, 9, 9}, 4, 1);
  const ArrayOnGpu<int32_t> gindex(gpu(), index);
  gather_rows(gpu(), in.view, gindex.view, out.view);
  EXPECT_EQ(out.host(), (std::vector<int64_t>{-3, int64_t{1} << 40, int64_t{1} << 40, 2}));
}

// In float32 the sums run in the order of the CPU: equal to the last bit.
TEST_F(ReduceGpu, ScatterAddsInRisingOrder) {
  for (const DType t : kTypes) {
    for (const auto& [rows, cols, gap] : kShapes) {
      if (rows == 0) continue;
      for (const int64_t n : {int64_t{0}, int64_t{1}, rows, 5 * rows}) {
        const HostMatrix in = rounded(HostMatrix::normal(n, cols, 1, gap), t);
        const HostMatrix before = rounded(HostMatrix::normal(rows, cols, 2, gap), t);
        std::vector<int32_t> index = random_ints(n, 0, static_cast<int32_t>(rows) - 1, 4);
        HostMatrix want = before;
        scatter_add_rows(cpu, in.view, tensor_of(index.data(), 1, n), want.view);
        const auto run = [&]() -> Outputs {
          const OnGpu gin(gpu(), in, t), gout(gpu(), before, t);
          const ArrayOnGpu<int32_t> gindex(gpu(), index);
          scatter_add_rows(gpu(), gin.view, gindex.view, gout.view);
          return {gout.host()};
        };
        compare(shape_name(t, rows, cols, gap), run, {want}, t == DType::kF32 ? 0 : bound(t));
      }
    }
  }
}

TEST_F(ReduceGpu, SumsAreAccumulatedInDouble) {
  for (const DType t : kTypes) {
    for (const auto& [rows, cols, gap] : {Shape{1, 1, 0}, Shape{5, 64, 0}, Shape{7, 65, 3},
                                          Shape{1, 3000001, 0}, Shape{600, 2000, 0}, Shape{0, 4, 0}}) {
      const HostMatrix x = rounded(HostMatrix::normal(rows, cols, 1, gap), t);
      std::vector<double> want_sum = {0.5}, want_squares = {2};
      sum(cpu, x.view, Tensor{want_sum.data(), DType::kF64, 1, 1, 1});
      sum_squares(cpu, x.view, Tensor{want_squares.data(), DType::kF64, 1, 1, 1});
      const auto on_gpu = [&](int64_t row_gap) {
        HostMatrix same(rows, cols, row_gap);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < cols; ++c) same(r, c) = x(r, c);
        const OnGpu gx(gpu(), same, t);
        const ArrayOnGpu<double> gsum(gpu(), {0.5}), gsquares(gpu(), {2});
        sum(gpu(), gx.view, gsum.view);
        sum_squares(gpu(), gx.view, gsquares.view);
        return std::vector<double>{gsum.host()[0], gsquares.host()[0]};
      };
      const std::vector<double> got = on_gpu(gap);
      EXPECT_NEAR(got[0], want_sum[0], 1e-12 * (want_squares[0] + 1)) << shape_name(t, rows, cols, gap);
      EXPECT_NEAR(got[1], want_squares[0], 1e-12 * want_squares[0]) << shape_name(t, rows, cols, gap);
      EXPECT_EQ(got, on_gpu(gap)) << "a second run";
      EXPECT_EQ(got, on_gpu(gap + 5)) << "the order depends on the row stride";
    }
  }
}

TEST_F(ReduceGpu, OneInfiniteOrMissingNumberShows) {
  for (const float bad : {NAN, INFINITY}) {
    HostMatrix x = HostMatrix::normal(9, 1000, 1);
    x(8, 999) = bad;
    const OnGpu gx(gpu(), x);
    const ArrayOnGpu<double> out(gpu(), {0});
    sum_squares(gpu(), gx.view, out.view);
    EXPECT_FALSE(std::isfinite(out.host()[0]));
  }
}

class EmbeddingGpu : public GpuTwin {};

TEST_F(EmbeddingGpu, SlicesOfTheVocabulary) {
  struct Table {
    int64_t tokens, vocab, cols, begin, gap;
  };
  for (const DType t : kTypes) {
    for (const auto& [tokens, vocab, cols, begin, gap] :
         {Table{50, 20, 64, 0, 0}, Table{33, 10, 33, 8, 2}, Table{2000, 3, 40, 1, 0}, Table{0, 5, 8, 0, 0},
          Table{7, 0, 16, 4, 0}, Table{1, 1, 1, 0, 0}}) {
      const HostMatrix table = rounded(HostMatrix::normal(vocab, cols, 1), t);
      const HostMatrix dout = rounded(HostMatrix::normal(tokens, cols, 2, gap), t);
      // Ids below zero, below the slice, within and above it.
      std::vector<int32_t> ids = random_ints(tokens, -3, static_cast<int32_t>(begin + vocab) + 4, 5);
      const Tensor host_ids = tensor_of(ids.data(), 1, tokens);
      HostMatrix out(tokens, cols, gap, 3), dtable(vocab, cols, 0, 0.5F);
      embedding_forward(cpu, host_ids, table.view, begin, out.view);
      embedding_backward(cpu, host_ids, dout.view, begin, dtable.view);
      const auto run = [&]() -> Outputs {
        const OnGpu gtable(gpu(), table, t), gout(gpu(), HostMatrix(tokens, cols, gap, 3), t);
        const OnGpu gdout(gpu(), dout, t), gdtable(gpu(), HostMatrix(vocab, cols, 0, 0.5F));
        const ArrayOnGpu<int32_t> gids(gpu(), ids);
        embedding_forward(gpu(), gids.view, gtable.view, begin, gout.view);
        embedding_backward(gpu(), gids.view, gdout.view, begin, gdtable.view);
        return {gout.host(), gdtable.host()};
      };
      // A copy, and float32 sums in the order of the CPU.
      compare(shape_name(t, tokens, cols, gap), run, {out, dtable}, 0);
    }
  }
}

}  // namespace
}  // namespace pesc
