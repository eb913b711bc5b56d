// ranks: 1 2 4
// Gather and reduce-scatter of token slices: values, and each is the other's adjoint. With
// PESC_TEST_DEVICE=cuda over NCCL.
#include "parallel/tensor_parallel.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/device.h"
#include "tests/parallel/on_device.h"

namespace pesc {
namespace {

std::vector<float> random_vector(int64_t n, unsigned seed) {
  std::mt19937 gen(seed);
  std::uniform_real_distribution<float> u(-1, 1);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = u(gen);
  return v;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

class TensorParallelTest : public testing::Test {
 protected:
  std::vector<float> on_host(const Tensor& t) {
    std::vector<float> values(static_cast<size_t>(t.size()));
    copy_to_host(stream_, t, values.data());
    return values;
  }

  MpiSession session_;
  std::unique_ptr<Communicator> comm_ = test_world(session_);
  TensorParallel tp_{*comm_};
  Stream stream_{test_device()};
};

TEST_F(TensorParallelTest, CopiesAndSendsNothingOnOneRank) {
  ASSERT_EQ(tp_.size(), 1);
  std::vector<float> x = random_vector(12, 1);
  const Tensor slice = tensor_of(x.data(), 3, 4);
  EXPECT_EQ(tp_.gather(stream_, slice, Tensor{}).data, slice.data);
  EXPECT_EQ(tp_.reduce_scatter(stream_, slice, Tensor{}).data, slice.data);
  EXPECT_EQ(comm_->bytes_sent(), 0);
}

TEST_F(TensorParallelTest, GatherAndReduceScatterAreAdjoint) {
  const int n = tp_.size();
  for (const int64_t tokens : {0, 1, 3, 40}) {
    const int64_t cols = 7;
    const auto seed = static_cast<unsigned>(tokens * 100);
    const auto rank = static_cast<unsigned>(tp_.rank());
    std::vector<float> x = random_vector(tokens * cols, seed + rank);
    std::vector<float> y = random_vector(tokens * n * cols, seed + 50 + rank);
    std::vector<float> all(y.size(), -9);
    std::vector<float> part(x.size(), -9);
    OnDevice x_there(stream_, x, tokens, cols), y_there(stream_, y, tokens * n, cols);
    OnDevice all_there(stream_, all, tokens * n, cols), part_there(stream_, part, tokens, cols);
    const Tensor gathered_there = tp_.gather(stream_, x_there.view, all_there.view);
    const Tensor reduced_there = tp_.reduce_scatter(stream_, y_there.view, part_there.view);
    ASSERT_EQ(gathered_there.rows, tokens * n);
    ASSERT_EQ(reduced_there.rows, tokens);
    const std::vector<float> gathered = on_host(gathered_there);
    const std::vector<float> reduced = on_host(reduced_there);
    for (int r = 0; r < n; ++r) {
      const std::vector<float> theirs = random_vector(tokens * cols, seed + static_cast<unsigned>(r));
      for (size_t i = 0; i < theirs.size(); ++i)
        ASSERT_EQ(gathered[static_cast<size_t>(r) * theirs.size() + i], theirs[i]);
    }
    // Over the whole group: <gather(x), y> == <x, reduce_scatter(y)>.
    std::vector<double> sums = {dot(y, gathered), dot(x, reduced)};
    OnDevice sums_there(stream_, sums, 1, 2);
    comm_->all_reduce_sum(stream_, sums_there.view);
    sums_there.fetch();
    EXPECT_NEAR(sums[0], sums[1], 1e-5 * static_cast<double>(tokens + 1));
  }
}

TEST_F(TensorParallelTest, RefusesWrongShapesOnSeveralRanks) {
  ASSERT_GT(tp_.size(), 1);
  std::vector<float> x(100);
  EXPECT_THROW(tp_.gather(stream_, tensor_of(x.data(), 2, 3), tensor_of(x.data(), 2, 3)), InternalError);
  const Tensor wide = tensor_of(x.data(), 2, 6).col_range(0, 3);
  EXPECT_THROW(tp_.gather(stream_, wide, tensor_of(x.data(), 2 * tp_.size(), 3)), InternalError);
}

}  // namespace
}  // namespace pesc
