// ranks: 2 4
// The exchange of the adapters' weights: every rank gets all experts in their order, and the gradients' sums come to the
// ranks that own the experts. With PESC_TEST_DEVICE=cuda over NCCL.
#include "parallel/weight_gatherer.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/device.h"
#include "tests/parallel/on_device.h"

namespace pesc {
namespace {

constexpr int64_t kOwn = 2, kDim = 3, kHidden = 5;  // experts of a rank, adapter size, hidden size

// Whole numbers, whose sums are exact in any order.
float down_value(int64_t layer, int64_t expert, int64_t i) {
  return static_cast<float>(layer * 1000 + expert * 100 + i);
}
float up_value(int64_t layer, int64_t expert, int64_t i) {
  return static_cast<float>(-layer * 2000 - expert * 50 - 3 * i);
}

class WeightGathererTest : public testing::Test {
 protected:
  static constexpr int64_t kEach = kDim * kHidden;  // values of an expert's matrix

  struct Matrices {
    std::vector<float> down_host, up_host;
    OnDevice<float> down, up;
    Matrices(Stream& stream, int64_t experts)
        : down_host(static_cast<size_t>(experts * kEach)),
          up_host(down_host.size()),
          down(stream, down_host, experts * kDim, kHidden),
          up(stream, up_host, experts * kHidden, kDim) {}
    template <class Down, class Up>
    void fill(int64_t first, Down&& of_down, Up&& of_up) {
      for (size_t i = 0; i < down_host.size(); ++i) {
        const auto at = static_cast<int64_t>(i);
        down_host[i] = of_down(first + at / kEach, at % kEach);
        up_host[i] = of_up(first + at / kEach, at % kEach);
      }
      down.push();
      up.push();
    }
    void fetch() {
      down.fetch();
      up.fetch();
    }
    [[nodiscard]] AdapterMatrices view() const { return {down.view, up.view}; }
  };

  WeightGathererTest() { stream_.open_comm_stream(); }

  void fill_own(int64_t layer) {
    own_.fill(
        first_, [&](int64_t e, int64_t i) { return down_value(layer, e, i); },
        [&](int64_t e, int64_t i) { return up_value(layer, e, i); });
  }
  WeightGatherer gatherer(size_t buffers) {
    std::vector<AdapterMatrices> weights;
    for (size_t i = 0; i < buffers; ++i) weights.push_back(gathered_[i].view());
    return {*world_, {weights, grads_.view(), own_grad_.view}};
  }
  void expect_gathered(Matrices& all, int64_t layer) {
    stream_.synchronize();
    all.fetch();
    for (int64_t e = 0; e < experts_; ++e) {
      for (int64_t i = 0; i < kEach; ++i) {
        EXPECT_EQ(all.down_host[static_cast<size_t>(e * kEach + i)], down_value(layer, e, i))
            << e << " " << i;
        EXPECT_EQ(all.up_host[static_cast<size_t>(e * kEach + i)], up_value(layer, e, i)) << e << " " << i;
      }
    }
  }

  MpiSession session_;
  std::unique_ptr<Communicator> world_ = test_world(session_);
  Stream stream_{test_device()};
  int64_t experts_ = kOwn * world_->size(), first_ = kOwn * world_->rank();
  Matrices own_{stream_, kOwn};
  Matrices gathered_[2]{{stream_, experts_}, {stream_, experts_}};
  Matrices grads_{stream_, experts_};
  std::vector<float> own_grad_host_ = std::vector<float>(static_cast<size_t>(kOwn * kEach));
  OnDevice<float> own_grad_{stream_, own_grad_host_, 1, kOwn* kEach};
};

TEST_F(WeightGathererTest, EveryRankGetsAllExpertsInOrder) {
  for (const size_t buffers : {1U, 2U}) {
    WeightGatherer gatherer = this->gatherer(buffers);
    EXPECT_EQ(gatherer.gathers_ahead(), buffers == 2);
    for (const int64_t layer : {0, 1, 2, 1, 0}) {
      fill_own(layer);
      gatherer.start_gather(stream_, layer, own_.view());
      gatherer.finish_gather(stream_, layer);
      Matrices& buffer = gathered_[static_cast<size_t>(layer) % buffers];
      EXPECT_EQ(gatherer.weights(layer).down.data, buffer.down.view.data);
      EXPECT_EQ(gatherer.weights(layer).up.data, buffer.up.view.data);
      expect_gathered(buffer, layer);
    }
  }
}

TEST_F(WeightGathererTest, TheNextLayerLeavesTheOneBeforeItAlone) {
  WeightGatherer gatherer = this->gatherer(2);
  fill_own(4);
  gatherer.start_gather(stream_, 4, own_.view());
  gatherer.finish_gather(stream_, 4);
  stream_.synchronize();
  fill_own(5);
  gatherer.start_gather(stream_, 5, own_.view());
  gatherer.finish_gather(stream_, 5);
  gatherer.finish_gather(stream_, 4);
  expect_gathered(gathered_[0], 4);
  expect_gathered(gathered_[1], 5);
}

TEST_F(WeightGathererTest, ALayerThatStandsGatheredIsSentAgainOnlyAfterForget) {
  WeightGatherer gatherer = this->gatherer(2);
  fill_own(0);
  gatherer.start_gather(stream_, 0, own_.view());
  const int64_t once = world_->bytes_sent();
  EXPECT_GE(once, 2 * kOwn * kEach * 4 * (world_->size() - 1));
  gatherer.start_gather(stream_, 0, own_.view());
  EXPECT_EQ(world_->bytes_sent(), once);
  gatherer.finish_gather(stream_, 0);
  stream_.synchronize();
  gatherer.forget();
  EXPECT_THROW(gatherer.finish_gather(stream_, 0), InternalError);
  own_.fill(
      first_, [](int64_t e, int64_t i) { return down_value(7, e, i); },
      [](int64_t e, int64_t i) { return up_value(7, e, i); });
  gatherer.start_gather(stream_, 0, own_.view());
  EXPECT_GT(world_->bytes_sent(), once);
  gatherer.finish_gather(stream_, 0);
  expect_gathered(gathered_[0], 7);
}

TEST_F(WeightGathererTest, RefusesTheUseOfALayerThatWasNotGathered) {
  WeightGatherer gatherer = this->gatherer(1);
  EXPECT_THROW(gatherer.finish_gather(stream_, 0), InternalError);
  fill_own(0);
  gatherer.start_gather(stream_, 0, own_.view());
  EXPECT_THROW(gatherer.finish_gather(stream_, 1), InternalError);
  gatherer.finish_gather(stream_, 0);
}

// Rank r's gradient of expert e is a number of r and e; the owner adds their sum to what it has.
TEST_F(WeightGathererTest, GradientsAreAddedUpAtTheirOwners) {
  WeightGatherer gatherer = this->gatherer(1);
  own_.fill(
      first_, [](int64_t, int64_t i) { return static_cast<float>(i); },
      [](int64_t, int64_t i) { return static_cast<float>(-i); });
  constexpr int kPasses = 3;
  const auto of_rank = [](int rank, int64_t e, int64_t i) {
    return static_cast<float>((rank + 1) * 1000 + e * 20 + i);
  };
  grads_.fill(
      0, [](int64_t, int64_t) { return 1e9F; }, [](int64_t, int64_t) { return 1e9F; });
  for (int pass = 0; pass < kPasses; ++pass) {
    const AdapterMatrices& zeroed = gatherer.zero_grads(stream_);
    EXPECT_EQ(zeroed.down.data, grads_.down.view.data);
    stream_.synchronize();
    grads_.fetch();
    EXPECT_EQ(*std::max_element(grads_.down_host.begin(), grads_.down_host.end()), 0);
    EXPECT_EQ(*std::max_element(grads_.up_host.begin(), grads_.up_host.end()), 0);
    grads_.fill(
        0, [&](int64_t e, int64_t i) { return of_rank(world_->rank(), e, i); },
        [&](int64_t e, int64_t i) { return -2 * of_rank(world_->rank(), e, i); });
    gatherer.reduce_scatter_grads(stream_, own_.view());
  }
  stream_.wait_stream(stream_.comm_stream());
  stream_.synchronize();
  own_.fetch();
  for (int64_t e = 0; e < kOwn; ++e) {
    for (int64_t i = 0; i < kEach; ++i) {
      float sum = 0;
      for (int r = 0; r < world_->size(); ++r) sum += of_rank(r, first_ + e, i);
      const auto at = static_cast<size_t>(e * kEach + i);
      EXPECT_EQ(own_.down_host[at], static_cast<float>(i) + kPasses * sum);
      EXPECT_EQ(own_.up_host[at], static_cast<float>(-i) - 2 * kPasses * sum);
    }
  }
}

}  // namespace
}  // namespace pesc
