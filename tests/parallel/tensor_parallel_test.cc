// ranks: 1 2 4
// Gather and reduce-scatter of token slices: values, and each is the other's adjoint.
#include "parallel/tensor_parallel.h"

#include <gtest/gtest.h>

#include <random>

#include "parallel/mpi_communicator.h"

namespace pesc {
namespace {

std::vector<float> random_vector(int64_t n, unsigned seed) {
  std::mt19937 gen(seed);
  std::uniform_real_distribution<float> u(-1, 1);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = u(gen);
  return v;
}

double dot(const std::vector<float>& a, const float* b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

class TensorParallelTest : public testing::Test {
 protected:
  MpiSession session_;
  std::unique_ptr<Communicator> comm_ = session_.world();
  TensorParallel tp_{*comm_};
  Stream stream_{Device{}};
};

TEST_F(TensorParallelTest, SlicesCoverTheTokens) {
  for (int64_t tokens = 0; tokens < 20; ++tokens) {
    EXPECT_GE(tp_.slice_tokens(tokens) * tp_.size(), tokens);
    EXPECT_LT(tp_.slice_tokens(tokens) * tp_.size(), tokens + tp_.size());
  }
}

TEST_F(TensorParallelTest, OneRankCopiesAndSendsNothing) {
  if (tp_.size() != 1) return;
  std::vector<float> x = random_vector(12, 1);
  const Tensor slice = tensor_of(x.data(), 3, 4);
  EXPECT_EQ(tp_.gather(stream_, slice, Tensor{}).data, slice.data);
  EXPECT_EQ(tp_.reduce_scatter(stream_, slice, Tensor{}).data, slice.data);
  EXPECT_EQ(comm_->bytes_sent(), 0);
}

TEST_F(TensorParallelTest, ValuesAndAdjoint) {
  const int n = tp_.size();
  for (const int64_t tokens : {0, 1, 3, 40}) {
    const int64_t cols = 7;
    const auto seed = static_cast<unsigned>(tokens * 100);
    const auto rank = static_cast<unsigned>(tp_.rank());
    std::vector<float> x = random_vector(tokens * cols, seed + rank);
    std::vector<float> y = random_vector(tokens * n * cols, seed + 50 + rank);
    std::vector<float> all(y.size(), -9);
    std::vector<float> part(x.size(), -9);
    const Tensor gathered =
        tp_.gather(stream_, tensor_of(x.data(), tokens, cols), tensor_of(all.data(), tokens * n, cols));
    const Tensor reduced = tp_.reduce_scatter(stream_, tensor_of(y.data(), tokens * n, cols),
                                              tensor_of(part.data(), tokens, cols));
    ASSERT_EQ(gathered.rows, tokens * n);
    ASSERT_EQ(reduced.rows, tokens);
    for (int r = 0; r < n; ++r) {
      const std::vector<float> theirs = random_vector(tokens * cols, seed + static_cast<unsigned>(r));
      for (size_t i = 0; i < theirs.size(); ++i)
        ASSERT_EQ(gathered.f32()[static_cast<size_t>(r) * theirs.size() + i], theirs[i]);
    }
    // Over the whole group: <gather(x), y> == <x, reduce_scatter(y)>.
    std::vector<double> sums = {dot(y, gathered.f32()), dot(x, reduced.f32())};
    comm_->all_reduce_sum(stream_, Tensor{sums.data(), DType::kF64, 1, 2, 2});
    EXPECT_NEAR(sums[0], sums[1], 1e-5 * static_cast<double>(tokens + 1));
  }
}

TEST_F(TensorParallelTest, RefusesWrongShapes) {
  if (tp_.size() == 1) return;
  std::vector<float> x(100);
  EXPECT_THROW(tp_.gather(stream_, tensor_of(x.data(), 2, 3), tensor_of(x.data(), 2, 3)), InternalError);
  const Tensor wide = tensor_of(x.data(), 2, 6).col_range(0, 3);
  EXPECT_THROW(tp_.gather(stream_, wide, tensor_of(x.data(), 2 * tp_.size(), 3)), InternalError);
}

}  // namespace
}  // namespace pesc
