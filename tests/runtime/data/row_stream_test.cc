#include "runtime/data/row_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>

#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

constexpr int64_t kLength = 90;

// 40 rows with answers of 1 to 40 characters, 60 an epoch: 20 of them are drawn anew for each.
class RowStreams : public ::testing::Test {
 protected:
  RowStreams() {
    std::string text;
    for (int i = 0; i < 40; ++i) {
      text += R"({"instruction": "q", "output": ")" + std::string(static_cast<size_t>(i * 7 % 40 + 1), 'a') +
              R"(", "dataset": "t)" + std::to_string(i % 3) + "\"}\n";
    }
    DatasetOptions options;
    options.max_seq_length = kLength;
    data_ = std::make_unique<Dataset>(std::vector<DatasetFile>{{folder_.write("d.jsonl", text), "", 1.5}},
                                      ByteTokenizer(), options);
  }
  [[nodiscard]] RowStream stream(Packing packing) const { return {*data_, 3, packing, kLength}; }

  TokenizerFolder folder_;
  std::unique_ptr<Dataset> data_;
};

void expect_same(const LocalBatch& a, const LocalBatch& b) {
  EXPECT_EQ(a.host.tokens, b.host.tokens);
  EXPECT_EQ(a.host.targets, b.host.targets);
  EXPECT_EQ(a.host.positions, b.host.positions);
  EXPECT_EQ(a.host.samples, b.host.samples);
  EXPECT_EQ(a.host.starts, b.host.starts);
  EXPECT_EQ(a.tags, b.tags);
}

TEST_F(RowStreams, WithoutPackingARowIsAConversation) {
  RowStream rows = stream(Packing::kNone);
  const Sampler sampler(data_->epoch_size(), 3);
  expect_same(rows.batch({50, 70}), make_local_batch(*data_, sampler, 50, 20));
  EXPECT_FALSE(rows.packs());
  for (const double epochs : {0.01, 0.5, 1.0, 2.25}) {
    EXPECT_EQ(rows.rows_for(epochs), sampler.rows_for(epochs));
    EXPECT_EQ(rows.exact_rows_for(epochs), epochs * 60);
  }
}

TEST_F(RowStreams, APackedRowIsItsConversationsAsTheyWouldBeAlone) {
  RowStream rows = stream(Packing::kBestFit);
  const Sampler sampler(data_->epoch_size(), 3);
  std::vector<int> seen(180);
  for (int64_t row = 0; row < rows.rows_for(3); ++row) {
    const LocalBatch packed = rows.batch({row, row + 1});
    EXPECT_LE(packed.host.size(), kLength);
    LocalBatch apart;
    for (int64_t i = 0; i < packed.conversations(); ++i) {
      const int64_t conversation =
          packed.host.samples[static_cast<size_t>(packed.host.starts[static_cast<size_t>(i)])];
      ++seen.at(static_cast<size_t>(conversation));
      add_conversation(*data_, sampler, conversation, apart);
      EXPECT_EQ(apart.host.targets.back(), kUnsupervised);  // nothing predicts the next one's first token
    }
    expect_same(packed, apart);
  }
  EXPECT_EQ(seen, std::vector<int>(180, 1));  // three epochs
}

TEST_F(RowStreams, SomeRowsHaveSeveralConversations) {
  RowStream rows = stream(Packing::kBestFit);
  const int64_t epoch = rows.rows_for(1);
  EXPECT_LT(epoch, 45);
  EXPECT_GE(epoch, 20);
  EXPECT_TRUE(rows.packs());
}

// What the ranks hold together is the same stream on every layout.
TEST_F(RowStreams, RowsGoToTheSameMicroBatchOnEveryLayout) {
  RowStream reference = stream(Packing::kBestFit);
  for (const int dp : {1, 2, 3, 4, 8}) {
    const BatchPlan plan{9, 4, dp};
    RowStream rows = stream(Packing::kBestFit);  // of a rank of its own
    for (int64_t step = 0; step < 6; ++step) {
      for (int64_t micro = 0; micro < plan.micro_batches(); ++micro) {
        const Range all = plan.micro_range(step * 9, micro);
        std::vector<int32_t> tokens;
        std::vector<int64_t> samples;
        for (int rank = 0; rank < dp; ++rank) {
          const Range mine = plan.local_range(step * 9, micro, rank);
          const LocalBatch part = rows.batch(mine);
          EXPECT_LE(part.host.size(), mine.size() * kLength);  // what memory is planned for
          tokens.insert(tokens.end(), part.host.tokens.begin(), part.host.tokens.end());
          samples.insert(samples.end(), part.host.samples.begin(), part.host.samples.end());
        }
        const LocalBatch whole = reference.batch(all);
        EXPECT_EQ(tokens, whole.host.tokens);
        EXPECT_EQ(samples, whole.host.samples);
      }
    }
  }
}

TEST_F(RowStreams, EpochsCountPackedRows) {
  RowStream rows = stream(Packing::kBestFit);
  const int64_t one = rows.rows_for(1);
  const int64_t two = rows.rows_for(2);
  EXPECT_EQ(rows.rows_for(0), 0);
  EXPECT_EQ(rows.rows_for(0.001), 1);
  EXPECT_EQ(rows.rows_for(0.5), (one + 1) / 2);
  EXPECT_EQ(rows.rows_for(1.5), one + (two - one + 1) / 2);
  EXPECT_EQ(rows.exact_rows_for(1.5), static_cast<double>(one) + static_cast<double>(two - one) / 2);
  EXPECT_EQ(rows.exact_rows_for(2), static_cast<double>(two));
  // The last row of an epoch and the first of the next are of different epochs.
  EXPECT_LT(std::ranges::max(rows.batch({0, one}).host.samples), 60);
  EXPECT_GE(std::ranges::min(rows.batch({one, one + 1}).host.samples), 60);
}

TEST_F(RowStreams, AResumedRunFindsTheSameRows) {
  RowStream straight = stream(Packing::kBestFit);
  for (int64_t row = 0; row < 100; row += 10) (void)straight.batch({row, row + 10});
  RowStream resumed = stream(Packing::kBestFit);
  expect_same(resumed.batch({100, 110}), straight.batch({100, 110}));
}

}  // namespace
}  // namespace pesc
