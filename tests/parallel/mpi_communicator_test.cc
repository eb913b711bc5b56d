// ranks: 1 2 3 4 8
// Every collective of the mpi communicator against locally computed results: values are pure functions of
// (rank, index), so that each rank can compute what all the others hold. Sums are compared bit for bit with
// the sum in rank order, and with float64.
#include <gtest/gtest.h>
#include <mpi.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "parallel/mpi_session.h"

namespace pesc {
namespace {

template <class T>
T value(int rank, int64_t i) {
  // Of very different sizes, so that another order of summation shows in the last bits.
  const auto h = static_cast<uint64_t>(i * 31 + rank * 1000003 + 7) * 0x9E3779B97F4A7C15ULL;
  const auto unit = static_cast<double>(h >> 11) / 9007199254740992.0 - 0.5;
  return static_cast<T>(std::ldexp(unit, static_cast<int>(h % 13)));
}

template <class T>
std::vector<T> values(int rank, int64_t n) {
  std::vector<T> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) v[static_cast<size_t>(i)] = value<T>(rank, i);
  return v;
}

template <class T>
Tensor tensor(std::vector<T>& v) {
  const auto n = static_cast<int64_t>(v.size());
  return {v.data(), sizeof(T) == 8 ? DType::kF64 : DType::kF32, 1, n, n};
}

template <class T>
T ordered_sum(int ranks, int64_t i) {
  T sum = value<T>(0, i);
  for (int r = 1; r < ranks; ++r) sum += value<T>(r, i);
  return sum;
}

double f64_sum(int ranks, int64_t i, auto of) {
  double sum = 0;
  for (int r = 0; r < ranks; ++r) sum += of(r, i);
  return sum;
}

// Crosses the direct limit, the chunk of 65536 floats, and sizes that no number of ranks divides.
const std::vector<int64_t> kSizes = {0, 1, 2, 5, 7, 8, 1000, 2047, 2049, 4099, 65537, 300007};

class MpiCommunicatorTest : public testing::Test {
 protected:
  template <class T>
  void expect_reduce_scatter(int64_t n) {
    std::vector<T> in = values<T>(rank_, n * size_);
    std::vector<T> out(static_cast<size_t>(n), T{-1});
    const int64_t sent = comm_->bytes_sent();
    comm_->reduce_scatter(stream_, tensor(in), tensor(out));
    EXPECT_EQ(comm_->bytes_sent() - sent, (size_ - 1) * n * static_cast<int64_t>(sizeof(T)));
    for (int64_t i = 0; i < n; ++i)
      ASSERT_EQ(out[static_cast<size_t>(i)], ordered_sum<T>(size_, rank_ * n + i)) << n << " " << i;
  }
  template <class T>
  void expect_all_reduce(int64_t n) {
    std::vector<T> data = values<T>(rank_, n);
    comm_->all_reduce_sum(stream_, tensor(data));
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(data[static_cast<size_t>(i)], ordered_sum<T>(size_, i)) << n << " " << i;
      const double tolerance = sizeof(T) == 8 ? 1e-11 : 4096 * 8 * 6e-8;
      ASSERT_NEAR(data[static_cast<size_t>(i)], f64_sum(size_, i, value<T>), tolerance);
    }
  }

  MpiSession session_;
  std::unique_ptr<Communicator> comm_ = session_.world();
  int rank_ = comm_->rank();
  int size_ = comm_->size();
  Stream stream_{Device{}};
};

TEST_F(MpiCommunicatorTest, NamesAndLocalRanks) {
  int rank = -1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  EXPECT_EQ(rank_, rank);
  EXPECT_EQ(comm_->name(), "world");
  EXPECT_EQ(comm_->bytes_sent(), 0);
  EXPECT_EQ(session_.local_rank(), rank_);  // the tests run on one host
  EXPECT_EQ(session_.local_size(), size_);
}

TEST_F(MpiCommunicatorTest, AllGatherBringsEveryRanksPart) {
  for (const int64_t n : kSizes) {
    std::vector<float> in = values<float>(rank_, n);
    std::vector<float> out(static_cast<size_t>(n * size_), -1);
    const int64_t sent = comm_->bytes_sent();
    comm_->all_gather(stream_, tensor(in), tensor(out));
    EXPECT_EQ(comm_->bytes_sent() - sent, (size_ - 1) * n * 4);
    for (int r = 0; r < size_; ++r)
      for (int64_t i = 0; i < n; ++i)
        ASSERT_EQ(out[static_cast<size_t>(r * n + i)], value<float>(r, i)) << n << " " << r << " " << i;
  }
}

TEST_F(MpiCommunicatorTest, AllGatherInPlaceOfAnyType) {
  const int64_t n = 33;
  std::vector<int32_t> out(static_cast<size_t>(n * size_), -1);
  for (int64_t i = 0; i < n; ++i)
    out[static_cast<size_t>(rank_ * n + i)] = static_cast<int32_t>(rank_ * 1000 + i);
  const Tensor all = tensor_of(out.data(), size_, n);
  comm_->all_gather(stream_, all.row_range(rank_, rank_ + 1), all);
  for (int r = 0; r < size_; ++r)
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(out[static_cast<size_t>(r * n + i)], r * 1000 + i);
}

TEST_F(MpiCommunicatorTest, ReduceScatterInRankOrder) {
  for (const int64_t n : kSizes) {
    expect_reduce_scatter<float>(n);
    expect_reduce_scatter<double>(n);
  }
}

TEST_F(MpiCommunicatorTest, AllReduceSumInRankOrder) {
  for (const int64_t n : kSizes) {
    expect_all_reduce<float>(n);
    expect_all_reduce<double>(n);
  }
}

TEST_F(MpiCommunicatorTest, AllReduceIsBitwiseTheSameOnAllRanks) {
  for (const int64_t n : {3, 5000, 200001}) {
    std::vector<float> data = values<float>(rank_, n);
    comm_->all_reduce_sum(stream_, tensor(data));
    const std::string bytes(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(float));
    for (const std::string& theirs : comm_->host_all_gather(bytes)) ASSERT_EQ(theirs == bytes, true) << n;
  }
}

TEST_F(MpiCommunicatorTest, AllReduceBytesSent) {
  // Small: everything to everybody. Large: every piece out once, the reduced piece to everybody.
  std::vector<float> small(10, 1);
  std::vector<float> large(static_cast<size_t>(6720) * 3, 1);  // divisible by the tested numbers of ranks
  comm_->all_reduce_sum(stream_, tensor(small));
  EXPECT_EQ(comm_->bytes_sent(), (size_ - 1) * 40);
  comm_->all_reduce_sum(stream_, tensor(large));
  EXPECT_EQ(comm_->bytes_sent(), (size_ - 1) * 40 + 2 * (size_ - 1) * 4 * 20160 / size_);
  EXPECT_EQ(large.back(), static_cast<float>(size_));
}

TEST_F(MpiCommunicatorTest, AllReduceMaxBringsTheLargest) {
  for (const int64_t n : kSizes) {
    std::vector<float> data = values<float>(rank_, n);
    comm_->all_reduce_max(stream_, tensor(data));
    for (int64_t i = 0; i < n; ++i) {
      float most = value<float>(0, i);
      for (int r = 1; r < size_; ++r) most = std::max(most, value<float>(r, i));
      ASSERT_EQ(data[static_cast<size_t>(i)], most) << n << " " << i;
    }
  }
  for (int who = 0; who < size_; ++who) {  // a NaN anywhere is not lost
    std::vector<float> data = {1.0F, rank_ == who ? std::numeric_limits<float>::quiet_NaN() : 2.0F};
    comm_->all_reduce_max(stream_, tensor(data));
    EXPECT_EQ(data[0], 1.0F);
    EXPECT_TRUE(std::isnan(data[1]));
  }
}

TEST_F(MpiCommunicatorTest, AllToAllVMovesEveryBlock) {
  for (const int64_t cols : {1, 3, 700}) {
    // Rank s sends (3 s + 5 d) % 4 rows to d: zero for some pairs, and unequal both ways.
    const auto count = [](int s, int d) { return int64_t{(3 * s + 5 * d) % 4}; };
    std::vector<int64_t> send;
    std::vector<int64_t> recv;
    for (int r = 0; r < size_; ++r) {
      send.push_back(count(rank_, r));
      recv.push_back(count(r, rank_));
    }
    std::vector<float> in;
    int64_t remote = 0;
    for (int d = 0; d < size_; ++d) {
      if (d != rank_) remote += count(rank_, d);
      for (int64_t i = 0; i < count(rank_, d) * cols; ++i)
        in.push_back(static_cast<float>(rank_ * 1000000 + d * 10000) + static_cast<float>(i));
    }
    const int64_t in_rows = std::accumulate(send.begin(), send.end(), int64_t{0});
    const int64_t out_rows = std::accumulate(recv.begin(), recv.end(), int64_t{0});
    std::vector<float> out(static_cast<size_t>(out_rows * cols), -1);
    const int64_t sent = comm_->bytes_sent();
    comm_->all_to_all_v(stream_, tensor_of(in.data(), in_rows, cols), send,
                        tensor_of(out.data(), out_rows, cols), recv);
    EXPECT_EQ(comm_->bytes_sent() - sent, remote * cols * 4);
    size_t at = 0;
    for (int s = 0; s < size_; ++s)
      for (int64_t i = 0; i < count(s, rank_) * cols; ++i)
        ASSERT_EQ(out[at++], static_cast<float>(s * 1000000 + rank_ * 10000) + static_cast<float>(i));
  }
}

TEST_F(MpiCommunicatorTest, HostCollectivesBringEveryRanksNumbers) {
  const std::vector<int64_t> own = {rank_, -5, int64_t{1} << (40 + rank_)};
  const std::vector<int64_t> all = comm_->host_all_gather(own);
  ASSERT_EQ(all.size(), own.size() * static_cast<size_t>(size_));
  for (int r = 0; r < size_; ++r) {
    EXPECT_EQ(all[static_cast<size_t>(3 * r)], r);
    EXPECT_EQ(all[static_cast<size_t>(3 * r + 1)], -5);
    EXPECT_EQ(all[static_cast<size_t>(3 * r + 2)], int64_t{1} << (40 + r));
  }
  EXPECT_TRUE(comm_->host_all_gather(std::vector<int64_t>{}).empty());

  // Rank r: r * 5000 letters; rank 0 has none.
  const auto word = [](int r) {
    return std::string(static_cast<size_t>(r) * 5000, static_cast<char>('a' + r));
  };
  const std::vector<std::string> words = comm_->host_all_gather(word(rank_));
  ASSERT_EQ(static_cast<int>(words.size()), size_);
  for (int r = 0; r < size_; ++r) EXPECT_EQ(words[static_cast<size_t>(r)], word(r));

  std::vector<int32_t> to_all;
  std::vector<int64_t> send;
  std::vector<int64_t> recv(static_cast<size_t>(size_), rank_);
  for (int r = 0; r < size_; ++r) {  // r values to rank r
    send.push_back(r);
    for (int i = 0; i < r; ++i) to_all.push_back(100 * rank_ + i);
  }
  const std::vector<int32_t> got = comm_->host_all_to_all_v(to_all, send, recv);
  ASSERT_EQ(static_cast<int>(got.size()), rank_ * size_);
  for (int s = 0; s < size_; ++s)
    for (int i = 0; i < rank_; ++i) EXPECT_EQ(got[static_cast<size_t>(s * rank_ + i)], 100 * s + i);
  comm_->barrier();
  EXPECT_EQ(comm_->bytes_sent(), 0);  // host collectives do not count
}

TEST_F(MpiCommunicatorTest, SplitKeepsRankOrder) {
  const auto part = comm_->split(rank_ % 2, str_cat("part", rank_ % 2));
  EXPECT_EQ(part->name(), str_cat("part", rank_ % 2));
  EXPECT_EQ(part->rank(), rank_ / 2);
  EXPECT_EQ(part->size(), (size_ + 1 - rank_ % 2) / 2);
  const std::vector<int64_t> members = part->host_all_gather(std::vector<int64_t>{rank_});
  for (size_t i = 0; i < members.size(); ++i) EXPECT_EQ(members[i], static_cast<int64_t>(2 * i) + rank_ % 2);
  std::vector<float> one = {1};
  part->all_reduce_sum(stream_, tensor(one));
  EXPECT_EQ(one[0], static_cast<float>(part->size()));
  EXPECT_THROW((void)comm_->split(-1, "none"), InternalError);
}

TEST_F(MpiCommunicatorTest, GroupsOfOneSendNothing) {
  const auto alone = comm_->split(rank_, "alone");
  std::vector<float> in = values<float>(rank_, 9);
  std::vector<float> out(9, -1);
  alone->reduce_scatter(stream_, tensor(in), tensor(out));
  EXPECT_EQ(out, in);
  std::fill(out.begin(), out.end(), -1.0F);
  alone->all_gather(stream_, tensor(in), tensor(out));
  EXPECT_EQ(out, in);
  alone->all_reduce_sum(stream_, tensor(out));
  alone->all_reduce_max(stream_, tensor(out));
  EXPECT_EQ(out, in);
  std::fill(out.begin(), out.end(), -1.0F);
  const std::vector<int64_t> rows = {3};
  alone->all_to_all_v(stream_, tensor_of(in.data(), 3, 3), rows, tensor_of(out.data(), 3, 3), rows);
  EXPECT_EQ(out, in);
  EXPECT_EQ(alone->bytes_sent(), 0);
}

TEST_F(MpiCommunicatorTest, RefusesWrongShapes) {
  std::vector<float> x(30);
  EXPECT_THROW(comm_->all_gather(stream_, tensor_of(x.data(), 1, 3), tensor_of(x.data(), 1, 3 * size_ + 1)),
               InternalError);
  EXPECT_THROW(
      comm_->reduce_scatter(stream_, tensor_of(x.data(), 1, 3 * size_ + 1), tensor_of(x.data(), 1, 3)),
      InternalError);
  EXPECT_THROW(comm_->all_reduce_sum(stream_, tensor_of(x.data(), 4, 6).col_range(0, 3)), InternalError);
  std::vector<int32_t> ints(4);
  EXPECT_THROW(comm_->all_reduce_sum(stream_, tensor_of(ints.data(), 1, 4)), InternalError);
  const std::vector<int64_t> rows(static_cast<size_t>(size_ + 1), 0);
  EXPECT_THROW(comm_->all_to_all_v(stream_, tensor_of(x.data(), 0, 3), rows, tensor_of(x.data(), 0, 3), rows),
               InternalError);
}

TEST_F(MpiCommunicatorTest, WaitsAreBoundedAndSayForWhomOnSeveralRanks) {
  ASSERT_GT(size_, 1);
  const auto pair = comm_->split(0, "stuck");
  session_.set_wait_limit(0.2);
  std::vector<float> x(8, 1);
  // Rank 0 does not come; the others cannot finish.
  if (rank_ != 0) {
    try {
      pair->all_reduce_sum(stream_, tensor(x));
      ADD_FAILURE() << "did not hang";
    } catch (const HangError& e) {
      EXPECT_EQ(e.code(), ExitCode::kHang);
      const std::string what = e.what();
      EXPECT_NE(what.find(str_cat("rank ", rank_, " of ", size_, ": all_reduce_sum on communicator 'stuck'")),
                std::string::npos)
          << what;
      EXPECT_NE(what.find("32 bytes from rank 0 did not come"), std::string::npos) << what;
    }
  }
  session_.set_wait_limit(600);
  // The other communicators still work.
  std::vector<float> one = {1};
  comm_->all_reduce_sum(stream_, tensor(one));
  EXPECT_EQ(one[0], static_cast<float>(size_));
}

TEST_F(MpiCommunicatorTest, DisagreementAboutSizesIsAnErrorOnTwoRanks) {
  ASSERT_EQ(size_, 2);
  const auto pair = comm_->split(0, "pair");
  const std::vector<int64_t> own(rank_ == 0 ? 2 : 3, 1);
  EXPECT_THROW((void)pair->host_all_gather(own), IoError);
}

}  // namespace
}  // namespace pesc
