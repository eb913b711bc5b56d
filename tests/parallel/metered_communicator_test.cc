// ranks: 1 2 4
// What a metered communicator counts and times, and that it passes everything on. With PESC_TEST_DEVICE=cuda over
// NCCL.
#include "parallel/metered_communicator.h"

#include <gtest/gtest.h>

#include <numeric>

#include "ops/core/arena.h"
#include "ops/reduce.h"
#include "parallel/mpi_library.h"
#include "tests/device.h"
#include "tests/parallel/on_device.h"

namespace pesc {
namespace {

class MeteredCommunicatorTest : public testing::Test {
 protected:
  // [1, n] that holds `first`, `first` + 1, ...
  Tensor counted(int64_t n, float first) {
    std::vector<float> values(static_cast<size_t>(n));
    std::iota(values.begin(), values.end(), first);
    const Tensor t = arena_.allocate(1, n);
    copy_from_host(stream_, values.data(), t);
    return t;
  }
  std::vector<float> on_host(const Tensor& t) {
    std::vector<float> values(static_cast<size_t>(t.size()));
    copy_to_host(stream_, t, values.data());
    return values;
  }
  [[nodiscard]] CollectiveCount count(const std::string& group, const std::string& operation,
                                      int64_t bytes) const {
    const auto at = meter_.counts().find({group, operation, metered_->size(), DType::kF32, bytes});
    return at == meter_.counts().end() ? CollectiveCount{} : at->second;
  }

  MpiSession session_;
  std::unique_ptr<Communicator> world_ = test_world(session_);
  CollectiveMeter meter_;
  std::unique_ptr<Communicator> metered_ = metered_communicator(*world_, meter_);
  Stream stream_{test_device()};
  Arena arena_{"metered test", stream_.device(), 1 << 16};
};

TEST_F(MeteredCommunicatorTest, PassesEverythingOnAndCountsWhatIsSent) {
  const int n = metered_->size();
  const auto rank = static_cast<float>(metered_->rank());
  const Tensor mine = counted(6, 6 * rank), all = counted(6 * n, 0), sum = counted(5, rank);
  std::vector<float> expected(static_cast<size_t>(6 * n));
  std::iota(expected.begin(), expected.end(), 0.0F);
  fill_zero(stream_, all);
  metered_->all_gather(stream_, mine, all);
  metered_->all_gather(stream_, mine, all);
  EXPECT_EQ(on_host(all), expected);

  const Tensor piece = counted(6, 0);
  metered_->reduce_scatter(stream_, all, piece);
  EXPECT_EQ(on_host(piece)[5], static_cast<float>(n) * (6 * rank + 5));
  metered_->all_reduce_sum(stream_, sum);
  EXPECT_EQ(on_host(sum)[0], static_cast<float>(n * (n - 1)) / 2);

  // Two rows of three columns to every rank.
  const std::vector<int64_t> two(static_cast<size_t>(n), 2);
  const Tensor rows = all.reshaped(2 * n, 3), received = counted(6 * n, 0).reshaped(2 * n, 3);
  metered_->all_to_all_v(stream_, rows, two, received, two);
  EXPECT_EQ(on_host(received)[0], 6 * rank);

  if (n == 1) {  // and nothing is sent
    EXPECT_TRUE(meter_.counts().empty());
    return;
  }
  EXPECT_EQ(count("world", "all_gather", 24).calls, 2);
  EXPECT_EQ(count("world", "all_gather", 24).bytes_sent, 2 * 24 * (n - 1));
  EXPECT_EQ(count("world", "reduce_scatter", 24).bytes_sent, 24 * (n - 1));
  EXPECT_EQ(count("world", "all_reduce", 20).calls, 1);
  EXPECT_EQ(count("world", "all_to_all", 12).bytes_sent, 2 * 12 * (n - 1));
  int64_t sent = 0;
  for (const auto& [kind, one] : meter_.counts()) {
    sent += one.bytes_sent;
    EXPECT_EQ(one.timed_calls, 0);
    EXPECT_EQ(one.seconds, 0);
  }
  EXPECT_EQ(sent, metered_->bytes_sent());
}

TEST_F(MeteredCommunicatorTest, CountsGroupsThatAreSplitFromItUnderTheirNames) {
  const int n = metered_->size();
  const std::unique_ptr<Communicator> alone = metered_->split(metered_->rank(), "alone");
  const std::unique_ptr<Communicator> same = metered_->split(0, "same");
  alone->all_reduce_sum(stream_, counted(3, 0));
  same->all_reduce_sum(stream_, counted(3, 0));
  stream_.synchronize();
  EXPECT_EQ(meter_.counts().size(), n == 1 ? 0U : 1U);
  EXPECT_EQ(count("same", "all_reduce", 12).calls, n == 1 ? 0 : 1);
  EXPECT_EQ(count("same", "all_reduce", 12).bytes_sent, same->bytes_sent());
  meter_.reset();
  EXPECT_TRUE(meter_.counts().empty());
}

TEST_F(MeteredCommunicatorTest, TimesCallsBetweenStartAndStopOnlyOnSeveralRanks) {
  const Tensor data = counted(1000, 0), piece = counted(10, 0), all = counted(10 * metered_->size(), 0);
  metered_->all_reduce_sum(stream_, data);
  for (int round = 0; round < 2; ++round) {
    meter_.start_timing();
    for (int i = 0; i < 3; ++i) {
      metered_->all_reduce_sum(stream_, data);
      metered_->all_gather(stream_, piece, all);
    }
    meter_.stop_timing(stream_);
    metered_->all_reduce_sum(stream_, data);
  }
  stream_.synchronize();
  EXPECT_EQ(count("world", "all_reduce", 4000).calls, 9);
  EXPECT_EQ(count("world", "all_reduce", 4000).timed_calls, 6);
  EXPECT_EQ(count("world", "all_gather", 40).timed_calls, 6);
  EXPECT_GT(count("world", "all_reduce", 4000).seconds, 0);
  EXPECT_GT(count("world", "all_gather", 40).seconds, 0);
}

TEST_F(MeteredCommunicatorTest, MpisOwnCollectivesCanBeRepeated) {
  const MpiLibrary all(0), alone(world_->rank());
  for (const char* operation : {"all_gather", "reduce_scatter", "all_reduce", "all_to_all"}) {
    const auto one = alone.call(operation, 4096);
    const auto call = all.call(operation, 4096);
    for (int i = 0; i < 3; ++i) {
      EXPECT_NO_THROW(call()) << operation;
      EXPECT_NO_THROW(one()) << operation;
    }
  }
  EXPECT_THROW((void)all.call("broadcast", 4), Error);
}

}  // namespace
}  // namespace pesc
