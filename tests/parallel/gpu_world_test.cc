// ranks: 1 2 4
// What ranks with GPUs must agree on before NCCL starts, over the host's communicator and so without a GPU:
// every rank is refused, in the same words, and none is left waiting.
#include "parallel/gpu_world.h"

#include <gtest/gtest.h>

#include "parallel/mpi_session.h"

namespace pesc {
namespace {

class GpuWorld : public ::testing::Test {
 protected:
  // All ranks throw UsageError with the same text, which has these words.
  template <class Check>
  void expect_refusal(Check check, const std::vector<std::string>& words) {
    std::string said;
    try {
      check();
      ADD_FAILURE() << "not refused";
    } catch (const UsageError& e) {
      said = e.what();
    }
    for (const std::string& other : world_->host_all_gather(said)) EXPECT_EQ(other, said);
    for (const std::string& word : words)
      EXPECT_NE(said.find(word), std::string::npos) << word << ": " << said;
  }

  MpiSession session_;
  std::unique_ptr<Communicator> world_ = session_.world();
  int rank_ = world_->rank();
  int last_ = world_->size() - 1;
};

TEST_F(GpuWorld, NcclVersionsAreCompared) {
  EXPECT_EQ(nccl_version_text(22809), "NCCL 2.28.9");
  EXPECT_NO_THROW(check_same_nccl(*world_, 22809));
  if (last_ == 0) return;
  expect_refusal(
      [&] { check_same_nccl(*world_, rank_ == last_ ? 22703 : 22809); },
      {"rank 0 has NCCL 2.28.9", str_cat("rank ", last_, " has NCCL 2.27.3"), "install the same NCCL"});
  expect_refusal([&] { check_same_nccl(*world_, rank_ == 0 ? 22703 : 22809); },
                 {"rank 0 has NCCL 2.27.3", "rank 1 has NCCL 2.28.9"});
  // And the ranks can go on together.
  EXPECT_NO_THROW(check_same_nccl(*world_, 22809));
}

TEST_F(GpuWorld, RanksHaveGpusOfTheirOwn) {
  EXPECT_NO_THROW(check_one_rank_per_gpu(*world_, str_cat("board ", rank_)));
  if (last_ == 0) return;
  expect_refusal(
      [&] { check_one_rank_per_gpu(*world_, "the only board"); },
      {"parallel.device", "ranks 0 and 1 would share one GPU", "more ranks than GPUs", "share_gpu"});
  expect_refusal([&] { check_one_rank_per_gpu(*world_, str_cat("board ", rank_ == last_ ? 0 : rank_)); },
                 {str_cat("ranks 0 and ", last_, " would share one GPU")});
}

TEST_F(GpuWorld, SettingsAreRecorded) {
  setenv("NCCL_PESC_TEST", "7", 1);
  setenv("NCCL_ALGO", "Ring", 1);
  setenv("NCCL_HOSTID", "of one rank", 1);
  const std::string settings = nccl_settings();
  const size_t algo = settings.find("NCCL_ALGO=Ring ");
  const size_t ours = settings.find("NCCL_PESC_TEST=7");
  EXPECT_TRUE(algo != std::string::npos && ours != std::string::npos && algo < ours) << settings;
  EXPECT_EQ(settings.find("NCCL_HOSTID"), std::string::npos) << settings;
}

// Groups of the same ranks are one to NCCL.
TEST_F(GpuWorld, GroupsOfTheSameRanksCountOnce) {
  const auto bytes = [](int world, int tp, int ep) {
    return nccl_bytes(Mesh(world, 0, tp, ep), 4, GpuUse::kExclusive);
  };
  EXPECT_EQ(bytes(1, 1, 1), 0);
  const int64_t one = bytes(2, 1, 1);
  EXPECT_EQ(bytes(8, 1, 1), one);  // a ring has two neighbours, however long it is
  EXPECT_EQ(bytes(2, 2, 1), one);
  const int64_t ring = (bytes(8, 2, 1) - one) / 2;  // all, those of a slice, and those of a row
  EXPECT_GT(ring, int64_t{64} << 20);
  EXPECT_GT(one, ring);
  EXPECT_LT(nccl_bytes(Mesh(2, 0, 1, 1), 4, GpuUse::kShared), one);
  const int64_t peer = bytes(2, 1, 2) - one;
  EXPECT_GT(peer, int64_t{64} << 20);
  EXPECT_EQ(bytes(8, 1, 8), one + 7 * peer);
  EXPECT_EQ(bytes(8, 2, 4), one + 3 * ring + 3 * peer);  // and those that share experts
  // The weights' gathers take no peers, but a ring where no other group has the same ranks.
  const auto gathering = [](int world, int tp, int ep) {
    return nccl_bytes(Mesh(world, 0, tp, ep), 4, GpuUse::kExclusive, ExpertExchange::kWeights);
  };
  EXPECT_EQ(gathering(8, 1, 8), one);
  EXPECT_EQ(gathering(8, 2, 4), one + 4 * ring);
}

}  // namespace
}  // namespace pesc
