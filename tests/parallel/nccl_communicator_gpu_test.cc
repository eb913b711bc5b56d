// ranks: 1 2 4 8
// Every collective of ranks that share a GPU against locally computed results: values are pure functions of
// (rank, index). Sums must agree with float64 within rounding, be the same bits on all ranks, and again in a
// second run.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "ops/core/arena.h"
#include "ops/reduce.h"
#include "tests/device.h"

namespace pesc {
namespace {

float value(int rank, int64_t i) {
  const auto h = static_cast<uint64_t>(i * 31 + rank * 1000003 + 7) * 0x9E3779B97F4A7C15ULL;
  return static_cast<float>(static_cast<double>(h >> 11) / 9007199254740992.0 - 0.5);
}

class NcclTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!cuda::built()) GTEST_SKIP() << "no GPU test: this pesc was built without CUDA";
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU test: this machine has no GPU";
    host_ = session_.world();
    gpu_ = gpu_of_rank(session_.local_rank());
    world_ = open_gpu_world(*host_, gpu_, GpuUse::kShared);
    device_ = {DeviceKind::kCuda, gpu_, 1};
    stream_ = std::make_unique<Stream>(device_);
    arena_ = std::make_unique<Arena>("test", device_, int64_t{64} << 20);
    rank_ = world_->rank();
    size_ = world_->size();
  }
  // The decoder's order: memory and stream go before the communicators.
  void TearDown() override {
    arena_.reset();
    stream_.reset();
    world_.reset();
    session_.set_wait_limit(600);
  }

  Tensor upload(const std::vector<float>& v) {
    const Tensor t = arena_->allocate(1, static_cast<int64_t>(v.size()));
    copy_from_host(*stream_, v.data(), t);
    return t;
  }
  std::vector<float> download(const Tensor& t) {
    std::vector<float> v(static_cast<size_t>(t.size()));
    copy_to_host(*stream_, t, v.data());
    return v;
  }
  static std::vector<float> values(int rank, int64_t n) {
    std::vector<float> v;
    for (int64_t i = 0; i < n; ++i) v.push_back(value(rank, i));
    return v;
  }
  static void expect_sum(Communicator& c, const std::vector<float>& got, int64_t first) {
    for (size_t i = 0; i < got.size(); ++i) {
      double want = 0;
      for (int r = 0; r < c.size(); ++r) want += value(r, first + static_cast<int64_t>(i));
      ASSERT_NEAR(got[i], want, 1e-6 * c.size()) << i;
    }
  }

  MpiSession session_;
  std::unique_ptr<Communicator> host_, world_;
  Device device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Arena> arena_;
  int gpu_ = 0, rank_ = 0, size_ = 1;
};

const std::vector<int64_t> kSizes = {0, 1, 5, 1000, 65537, 300007};

TEST_F(NcclTest, AllReduceSumsOverAllRanks) {
  for (const int64_t n : kSizes) {
    const Arena::Scope scope(*arena_);
    const Tensor data = upload(values(rank_, n));
    world_->all_reduce_sum(*stream_, data);
    const std::vector<float> got = download(data);
    expect_sum(*world_, got, 0);
    const std::string mine(reinterpret_cast<const char*>(got.data()), got.size() * sizeof(float));
    for (const std::string& other : host_->host_all_gather(mine)) EXPECT_EQ(other == mine, true) << n;
    const Tensor again = upload(values(rank_, n));
    world_->all_reduce_sum(*stream_, again);
    EXPECT_EQ(download(again), got);

    const Tensor most = upload(values(rank_, n));
    world_->all_reduce_max(*stream_, most);
    const std::vector<float> max = download(most);
    for (int64_t i = 0; i < n; ++i) {
      float want = value(0, i);
      for (int r = 1; r < size_; ++r) want = std::max(want, value(r, i));
      ASSERT_EQ(max[static_cast<size_t>(i)], want);
    }
  }
  const Tensor wide = arena_->allocate(1, 3, DType::kF64);
  const std::vector<double> ones(3, 1.0 + rank_);
  copy_from_host(*stream_, ones.data(), wide);
  world_->all_reduce_sum(*stream_, wide);
  std::vector<double> sums(3);
  copy_to_host(*stream_, wide, sums.data());
  for (const double s : sums) EXPECT_EQ(s, size_ * (size_ + 1) / 2.0);
}

TEST_F(NcclTest, GatherAndScatterMatchTheirDefinition) {
  for (const int64_t n : kSizes) {
    const Arena::Scope scope(*arena_);
    const Tensor own = upload(values(rank_, n));
    const Tensor all = arena_->allocate(1, n * size_);
    world_->all_gather(*stream_, own, all);
    std::vector<float> want;
    for (int r = 0; r < size_; ++r)
      for (int64_t i = 0; i < n; ++i) want.push_back(value(r, i));
    EXPECT_EQ(download(all), want) << n;
    // In place: the own piece of the output.
    const Tensor place = arena_->allocate(1, n * size_);
    const Tensor mine = place.col_range(rank_ * n, (rank_ + 1) * n);
    if (n > 0) copy_from_host(*stream_, values(rank_, n).data(), mine);
    world_->all_gather(*stream_, mine, place);
    EXPECT_EQ(download(place), want) << n;

    const Tensor in = upload(values(rank_, n * size_));
    const Tensor out = arena_->allocate(1, n);
    world_->reduce_scatter(*stream_, in, out);
    expect_sum(*world_, download(out), rank_ * n);
  }
}

// Rank s sends (s + 2 d) % 5 rows of three to rank d: none to some, itself included.
TEST_F(NcclTest, AllToAllVMovesEveryBlock) {
  const auto rows = [](int from, int to) { return int64_t{(from + 2 * to) % 5}; };
  std::vector<int64_t> send, receive;
  std::vector<float> in, want;
  for (int d = 0; d < size_; ++d) {
    send.push_back(rows(rank_, d));
    for (int64_t i = 0; i < 3 * rows(rank_, d); ++i) in.push_back(value(rank_ * 100 + d, i));
  }
  for (int s = 0; s < size_; ++s) {
    receive.push_back(rows(s, rank_));
    for (int64_t i = 0; i < 3 * rows(s, rank_); ++i) want.push_back(value(s * 100 + rank_, i));
  }
  const Tensor from = upload(in).reshaped(static_cast<int64_t>(in.size()) / 3, 3);
  const Tensor to = arena_->allocate(static_cast<int64_t>(want.size()) / 3, 3);
  for (int run = 0; run < 3; ++run) {
    world_->all_to_all_v(*stream_, from, send, to, receive);
    EXPECT_EQ(download(to), want);
  }
}

TEST_F(NcclTest, SplitGroupsWorkBesideEachOther) {
  const auto half = world_->split(rank_ % 2, "half");
  const auto pair = world_->split(rank_ / 2, "pair");
  const Tensor data = upload(values(0, 4099));
  for (int run = 0; run < 2; ++run) {
    half->all_reduce_sum(*stream_, data);
    pair->all_reduce_max(*stream_, data);
  }
  const std::vector<float> got = download(data);
  const auto scale = static_cast<float>(half->size() * half->size());
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], value(0, static_cast<int64_t>(i)) * scale, 1e-5 * static_cast<double>(scale));
}

// Communicators of the same ranks are one to NCCL: they work beside each other and after each other's end,
// whichever came first, and one that nobody used ends without any.
TEST_F(NcclTest, SplitsOfTheSameRanksOutliveEachOther) {
  const auto check = [&](Communicator& c) {
    const Arena::Scope scope(*arena_);
    const Tensor data = upload(values(c.rank(), 4099));
    c.all_reduce_sum(*stream_, data);
    expect_sum(c, download(data), 0);
  };
  for (const bool all : {true, false}) {
    const int colour = all ? 0 : rank_ / 2;
    auto first = world_->split(colour, "first");
    auto second = world_->split(colour, "second");
    auto unused = world_->split(colour, "unused");
    check(*first);
    check(*second);
    first.reset();
    check(*second);
    unused.reset();
    auto third = world_->split(colour, "third");
    second.reset();
    check(*third);
    check(*world_);
    third.reset();
    check(*world_);
    // Once nobody has it, it is made anew.
    check(*world_->split(colour, "fourth"));
  }
}

// With a comm stream the calls on the other one wait for what they read, and it for them; those on
// the comm stream itself run beside the other's work.
TEST_F(NcclTest, CollectivesHaveTheirOwnStream) {
  stream_->open_comm_stream();
  Stream& comm_stream = stream_->comm_stream();
  ASSERT_NE(&comm_stream, stream_.get());
  const auto pair = world_->split(rank_ / 2, "pair");
  constexpr int64_t kSize = 1 << 20;
  const Tensor mine = upload(values(rank_, kSize));
  const Tensor data = arena_->allocate(1, kSize);
  const Tensor beside = arena_->allocate(1, kSize);
  for (int run = 0; run < 20; ++run) {
    fill_zero(*stream_, data);
    copy(*stream_, mine, data);
    copy(*stream_, mine, beside);
    comm_stream.wait_stream(*stream_);
    pair->all_reduce_max(comm_stream, beside);  // under the next three
    world_->all_reduce_sum(*stream_, data);     // waits for it: one operation at a time
    fill_zero(*stream_, data.col_range(0, 1));
    copy(*stream_, mine.col_range(0, 1), data.col_range(0, 1));
    stream_->wait_stream(comm_stream);
    const std::vector<float> max = download(beside);
    const std::vector<float> sum = download(data);
    ASSERT_EQ(sum[0], value(rank_, 0));
    for (size_t i = 1; i < sum.size(); i += 1001) {
      const auto at = static_cast<int64_t>(i);
      double want = 0;
      float largest = value(rank_, at);
      for (int r = 0; r < size_; ++r) {
        want += value(r, at);
        if (r / 2 == rank_ / 2) largest = std::max(largest, value(r, at));
      }
      ASSERT_NEAR(sum[i], want, 1e-6 * size_) << i;
      ASSERT_EQ(max[i], largest) << i;
    }
  }
}

// What a stream waits for the other is told apart from its own work. On one rank: others take turns on the
// GPU. The host can be held up between two calls, and the GPU lent to others: one of several tries is clear.
TEST_F(NcclTest, TheWaitIsCommunicationOnOneRank) {
  ASSERT_EQ(size_, 1);
  stream_->open_comm_stream();
  Stream& comm_stream = stream_->comm_stream();
  const Tensor x = upload(values(0, 1 << 21));
  const auto work = [&x](Stream& stream) {
    for (int i = 0; i < 200; ++i) add(stream, x, x);
  };
  // How much longer the first phase lasted than the second.
  const auto ratio = [](const auto& seconds, Phase first, Phase second) {
    return seconds[static_cast<size_t>(first)] / seconds[static_cast<size_t>(second)];
  };
  double waited = 0;
  double worked = 0;
  for (int i = 0; i < 20; ++i) {
    stream_->synchronize();
    work(comm_stream);
    stream_->start_clock(Phase::kGemm);
    stream_->wait_stream(comm_stream);
    waited = std::max(waited, ratio(stream_->stop_clock(), Phase::kCommunication, Phase::kGemm));
    stream_->start_clock(Phase::kGemm);
    work(*stream_);
    stream_->wait_stream(comm_stream);
    worked = std::max(worked, ratio(stream_->stop_clock(), Phase::kGemm, Phase::kCommunication));
  }
  EXPECT_GT(waited, 5);
  EXPECT_GT(worked, 5);
}

// A rank that does not come ends the wait of the others, by name; also where they wait through another
// stream.
TEST_F(NcclTest, AWaitEndsOnSeveralRanks) {
  ASSERT_GT(size_, 1);
  stream_->open_comm_stream();
  const Tensor data = upload(values(rank_, 1000));
  world_->all_reduce_sum(*stream_, data);
  stream_->synchronize();
  session_.set_wait_limit(2);
  if (rank_ == 0) {
    std::this_thread::sleep_for(std::chrono::seconds(4));
  } else {
    try {
      world_->all_reduce_sum(*stream_, data);
      stream_->synchronize();
      ADD_FAILURE() << "the wait ended without an error";
    } catch (const HangError& e) {
      const std::string what = e.what();
      EXPECT_NE(what.find("all_reduce_sum of 4000 bytes"), std::string::npos) << what;
      EXPECT_NE(what.find(str_cat("world rank ", rank_)), std::string::npos) << what;
    }
  }
}

}  // namespace
}  // namespace pesc
