#include "runtime/data/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "ops/core/check.h"
#include "runtime/data/permutation.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

std::vector<int64_t> epoch_of(const Sampler& sampler, int64_t epoch) {
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < sampler.epoch_size(); ++i)
    rows.push_back(sampler.row(epoch * sampler.epoch_size() + i));
  return rows;
}

TEST(Permutation, IsABijectionForEverySize) {
  for (int64_t n = 1; n <= 300; ++n) {
    for (const uint64_t seed : {uint64_t{0}, uint64_t{1} << 63}) {
      const Permutation permutation(n, seed, 3, n % 5);
      std::vector<bool> hit(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) {
        const int64_t to = permutation(i);
        ASSERT_TRUE(to >= 0 && to < n);
        ASSERT_FALSE(hit[static_cast<size_t>(to)]) << n;
        hit[static_cast<size_t>(to)] = true;
      }
    }
  }
  const Permutation large(100003, 9, 0, 0);
  std::set<int64_t> images;
  for (int64_t i = 0; i < 100003; ++i) images.insert(large(i));
  EXPECT_EQ(images.size(), 100003U);
}

TEST(Permutation, WorksAtTheLargestSize) {
  const int64_t n = int64_t{1} << 62;
  const Permutation permutation(n, 1, 0, 0);
  std::set<int64_t> images;
  for (int64_t i = 0; i < 1000; ++i) images.insert(permutation(n - 1 - i));
  EXPECT_EQ(images.size(), 1000U);
  EXPECT_GT(*images.rbegin(), n / 2);
  EXPECT_THROW((void)permutation(n), InternalError);
}

// Every ordering of three and every place of a row: a counting test of uniformity, with bounds of some six
// sigma.
TEST(Permutation, SpreadsEvenlyOverEpochs) {
  constexpr int kEpochs = 6000;
  std::map<std::vector<int64_t>, int> orders;
  std::vector<int> places(50);
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    const Permutation three(3, 42, 0, epoch);
    ++orders[{three(0), three(1), three(2)}];
    ++places[static_cast<size_t>(Permutation(50, 42, 0, epoch)(7))];
  }
  ASSERT_EQ(orders.size(), 6U);
  for (const auto& [order, count] : orders) EXPECT_NEAR(count, kEpochs / 6, 180);
  for (const int count : places) EXPECT_NEAR(count, kEpochs / 50, 66);
}

TEST(Sampler, EachEpochIsADifferentOrderOfAllRows) {
  const Sampler sampler(101, 7);
  std::vector<int64_t> all(101);
  std::iota(all.begin(), all.end(), 0);
  std::set<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 10; ++epoch) {
    std::vector<int64_t> rows = epoch_of(sampler, epoch);
    orders.insert(rows);
    EXPECT_NE(rows, all);
    std::ranges::sort(rows);
    EXPECT_EQ(rows, all);
  }
  EXPECT_EQ(orders.size(), 10U);
  EXPECT_EQ(epoch_of(sampler, 3), epoch_of(Sampler(101, 7), 3));
  EXPECT_NE(epoch_of(sampler, 3), epoch_of(Sampler(101, 8), 3));
  EXPECT_EQ(sampler.place(250).epoch, 2);
}

// The order is part of every checkpoint's meaning: a resumed run continues it. These values may not change.
TEST(Sampler, TheOrderIsFixedForEver) {
  const Sampler sampler(10, 1234);
  EXPECT_EQ(epoch_of(sampler, 0), (std::vector<int64_t>{9, 6, 5, 1, 3, 4, 7, 8, 2, 0}));
  EXPECT_EQ(epoch_of(sampler, 1), (std::vector<int64_t>{6, 9, 5, 0, 4, 8, 3, 1, 7, 2}));
}

TEST(Sampler, AsReadKeepsTheOrder) {
  const Sampler sampler(5, 7, RowOrder::kAsRead);
  EXPECT_EQ(epoch_of(sampler, 0), (std::vector<int64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(sampler.place(7), (Sampler::Place{1, 2}));
}

TEST(Sampler, RowsOfEpochsRoundUp) {
  const Sampler sampler(30, 0);
  EXPECT_EQ(sampler.rows_for(2), 60);
  EXPECT_EQ(sampler.rows_for(1), 30);
  EXPECT_EQ(sampler.rows_for(0.01), 1);
  EXPECT_EQ(sampler.rows_for(0.11), 4);
  EXPECT_EQ(sampler.rows_for(0.1), 3);  // not a little more and so a row more
  EXPECT_EQ(sampler.rows_for(0.5), 15);
  EXPECT_EQ(sampler.rows_for(0), 0);
}

class LocalBatches : public ::testing::Test {
 protected:
  LocalBatches() {
    std::string text;
    for (int i = 0; i < 23; ++i) {
      text += R"({"instruction": ")" + std::string(static_cast<size_t>(i % 7), 'q') + R"(", "output": "a)" +
              std::to_string(i) + R"(", "dataset": "t)" + std::to_string(i % 3) + "\"}\n";
    }
    DatasetOptions options;
    options.max_seq_length = 40;
    data_ = std::make_unique<Dataset>(std::vector<DatasetFile>{{folder_.write("d.jsonl", text), "", 1.5}},
                                      ByteTokenizer(), options);
  }
  TokenizerFolder folder_;
  std::unique_ptr<Dataset> data_;
};

void append(LocalBatch& all, const LocalBatch& more) {
  const auto shift = static_cast<int32_t>(all.host.size());
  const auto join = [](auto& a, const auto& b) { a.insert(a.end(), b.begin(), b.end()); };
  join(all.host.tokens, more.host.tokens);
  join(all.host.targets, more.host.targets);
  join(all.host.positions, more.host.positions);
  join(all.host.samples, more.host.samples);
  join(all.tags, more.tags);
  for (size_t i = 1; i < more.host.starts.size(); ++i) all.host.starts.push_back(more.host.starts[i] + shift);
}

void expect_equal(const LocalBatch& a, const LocalBatch& b) {
  EXPECT_EQ(a.host.tokens, b.host.tokens);
  EXPECT_EQ(a.host.targets, b.host.targets);
  EXPECT_EQ(a.host.positions, b.host.positions);
  EXPECT_EQ(a.host.samples, b.host.samples);
  EXPECT_EQ(a.host.starts, b.host.starts);
  EXPECT_EQ(a.tags, b.tags);
}

TEST_F(LocalBatches, HoldTheRowsEndToEnd) {
  const Sampler sampler(data_->epoch_size(), 3);
  const LocalBatch batch = make_local_batch(*data_, sampler, 30, 9);  // across the end of the epoch of 35
  ASSERT_EQ(batch.conversations(), 9);
  ASSERT_EQ(batch.host.starts.back(), batch.host.size());
  int64_t supervised = 0;
  for (int64_t i = 0; i < 9; ++i) {
    const Sampler::Place at = sampler.place(30 + i);
    EXPECT_EQ(at.epoch, i < 5 ? 0 : 1);
    const int64_t row = data_->entry_row(at.entry, at.epoch, 3);
    const auto begin = static_cast<size_t>(batch.host.starts[static_cast<size_t>(i)]);
    const auto end = static_cast<size_t>(batch.host.starts[static_cast<size_t>(i) + 1]);
    ASSERT_EQ(end - begin, data_->read(row).tokens.size());
    for (size_t t = begin; t < end; ++t) {
      EXPECT_EQ(batch.host.tokens[t], data_->read(row).tokens[t - begin]);
      EXPECT_EQ(batch.host.positions[t], static_cast<int32_t>(t - begin));
      EXPECT_EQ(batch.host.samples[t], 30 + i);
      EXPECT_EQ(batch.tags[t], data_->tag(row));
      if (batch.host.targets[t] != kUnsupervised) {
        ++supervised;
        ASSERT_LT(t + 1, end);  // nothing predicts across rows
        EXPECT_EQ(batch.host.targets[t], batch.host.tokens[t + 1]);
      }
    }
  }
  int64_t expected = 0;
  for (int64_t index = 30; index < 39; ++index) {
    const Sampler::Place at = sampler.place(index);
    for (const auto mark : data_->read(data_->entry_row(at.entry, at.epoch, 3)).supervised) expected += mark;
  }
  EXPECT_EQ(supervised, expected);
  EXPECT_GT(supervised, 9);
}

TEST_F(LocalBatches, AreEmptyForNoRows) {
  const LocalBatch batch = make_local_batch(*data_, Sampler(data_->epoch_size(), 3), 4, 0);
  EXPECT_EQ(batch.conversations(), 0);
  EXPECT_EQ(batch.host.size(), 0);
  EXPECT_EQ(batch.host.starts, (std::vector<int32_t>{0}));
}

// The union over ranks of the local batches is the same stream on every layout, and accumulation does not
// depend on it.
TEST_F(LocalBatches, DoNotDependOnTheLayout) {
  const Sampler sampler(data_->epoch_size(), 11);
  for (const int64_t micro_batch_rows : {1, 3, 8, 11}) {
    for (const int dp : {1, 2, 3, 4, 5, 8, 16}) {
      const BatchPlan plan{11, micro_batch_rows, dp};
      for (int64_t step = 0; step < 5; ++step) {
        const int64_t consumed_samples = step * plan.global_batch_size;
        LocalBatch stepped;
        for (int64_t micro = 0; micro < plan.micro_batches(); ++micro) {
          LocalBatch gathered;
          int64_t rows = 0;
          for (int rank = 0; rank < dp; ++rank) {
            const Range mine = plan.local_range(consumed_samples, micro, rank);
            EXPECT_LE(mine.size(),
                      split_range(micro_batch_rows, dp, 0).size());  // what memory is planned for
            rows += mine.size();
            append(gathered, make_local_batch(*data_, sampler, mine.begin, mine.size()));
          }
          const Range all = plan.micro_range(consumed_samples, micro);
          EXPECT_EQ(rows, all.size());
          EXPECT_EQ(all.begin, consumed_samples + micro * micro_batch_rows);
          expect_equal(gathered, make_local_batch(*data_, sampler, all.begin, all.size()));
          append(stepped, gathered);
        }
        expect_equal(stepped, make_local_batch(*data_, sampler, consumed_samples, plan.global_batch_size));
      }
    }
  }
}

TEST_F(LocalBatches, AnEvaluationSeesEachRowOnceAndEveryRankTheSameMicroBatches) {
  const Sampler sampler(data_->epoch_size(), 0, RowOrder::kAsRead);
  const int64_t end = sampler.epoch_size();
  for (const int dp : {1, 3, 4}) {
    const BatchPlan plan{8, 4, dp};
    std::vector<int64_t> seen;
    for (int64_t step = 0; step * 8 < sampler.epoch_size(); ++step) {
      for (int64_t micro = 0; micro < plan.micro_batches(); ++micro) {
        for (int rank = 0; rank < dp; ++rank) {
          const Range mine = plan.local_range(step * 8, micro, rank, end);
          for (int64_t i = mine.begin; i < mine.end; ++i) seen.push_back(i);
        }
      }
    }
    std::vector<int64_t> all(static_cast<size_t>(end));
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(seen, all);
  }
}

}  // namespace
}  // namespace pesc
