#include "runtime/data/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/core/check.h"
#include "ops/core/philox.h"

namespace pesc {
namespace {

using Row = std::vector<int64_t>;

// From `shortest` to `longest`, each as likely.
auto random_lengths(int64_t shortest, int64_t longest) {
  return [=](int64_t index) {
    const PhiloxCounter bits = philox({0, static_cast<uint32_t>(index), 1, 0}, {0, 0});
    return shortest + static_cast<int64_t>(bits[0] % static_cast<uint64_t>(longest - shortest + 1));
  };
}

Row row_of(PackedRows& packed, int64_t row) {
  const auto conversations = packed.conversations(row);
  return {conversations.begin(), conversations.end()};
}
std::vector<Row> rows_of(PackedRows& packed, int64_t begin, int64_t end) {
  std::vector<Row> rows;
  for (int64_t row = begin; row < end; ++row) rows.push_back(row_of(packed, row));
  return rows;
}

// A resumed run goes on with these rows: they may not change. Twelve conversations an epoch, two windows.
TEST(PackedRows, TheRowsAreFixedForEver) {
  const std::vector<int64_t> lengths{9, 2, 4, 3, 1, 4, 8, 6, 6, 10, 7, 5};
  PackedRows packed(
      12, 10, 1234, [&](int64_t i) { return lengths[static_cast<size_t>(i % 12)]; }, 6);
  EXPECT_EQ(rows_of(packed, 0, 9),
            (std::vector<Row>{{2, 5, 1}, {3}, {0, 4}, {9}, {10}, {11}, {7}, {8}, {6}}));
  EXPECT_EQ(rows_of(packed, 9, 12), (std::vector<Row>{{12, 16}, {14, 17, 13}, {15}}));
  EXPECT_EQ(packed.first_row(1), 9);
  EXPECT_EQ(packed.first_row(2), 18);
}

TEST(PackedRows, AConversationGoesIntoTheRowWithTheLeastRoom) {
  // 6, 5, 4, 3, 2 in rows of 10: the 4 fills the row of the 6, the 3 and the 2 that of the 5.
  const std::vector<int64_t> lengths{2, 3, 4, 5, 6};
  PackedRows packed(5, 10, 1, [&](int64_t i) { return lengths[static_cast<size_t>(i % 5)]; });
  std::vector<Row> rows = rows_of(packed, 0, 2);
  std::ranges::sort(rows);
  EXPECT_EQ(rows, (std::vector<Row>{{3, 1, 0}, {4, 2}}));
}

TEST(PackedRows, EveryEpochHasEveryConversationOnceInRowsThatFit) {
  for (const int64_t window : {1, 7, 100, 1000}) {
    for (const int64_t epoch_size : {1, 99, 100, 101, 350}) {
      SCOPED_TRACE(str_cat("windows of ", window, ", epochs of ", epoch_size));
      const auto length = random_lengths(1, 40);
      PackedRows packed(epoch_size, 40, 5, length, window);
      for (int64_t epoch = 0; epoch < 3; ++epoch) {
        Row seen;
        for (const Row& row : rows_of(packed, packed.first_row(epoch), packed.first_row(epoch + 1))) {
          int64_t tokens = 0;
          for (const int64_t conversation : row) tokens += length(conversation);
          EXPECT_LE(tokens, 40);
          // Of one window, which has at most so many conversations.
          const auto [least, most] = std::ranges::minmax(row);
          EXPECT_LT(most - least, window);
          seen.insert(seen.end(), row.begin(), row.end());
        }
        std::ranges::sort(seen);
        Row all(static_cast<size_t>(epoch_size));
        std::iota(all.begin(), all.end(), epoch * epoch_size);
        EXPECT_EQ(seen, all);
      }
    }
  }
}

TEST(PackedRows, AreTheSameFromWhereverTheyAreRead) {
  const auto length = random_lengths(10, 200);
  PackedRows straight(500, 256, 3, length, 64);
  const std::vector<Row> rows = rows_of(straight, 0, 900);
  PackedRows resumed(500, 256, 3, length, 64);
  for (const int64_t row : {700, 3, 899, 0, 420, 421, 699})
    EXPECT_EQ(row_of(resumed, row), rows[static_cast<size_t>(row)]) << row;
  PackedRows other_seed(500, 256, 4, length, 64);
  EXPECT_NE(rows_of(other_seed, 0, 30), rows_of(straight, 0, 30));
}

// The longest conversations open the first rows of a window; a run must not meet them first.
TEST(PackedRows, AreNotInTheOrderOfTheirLengths) {
  const auto length = random_lengths(64, 2048);
  PackedRows packed(4096, 2048, 1, length);
  const int64_t rows = packed.first_row(1);
  double early = 0;
  double all = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const auto longest = static_cast<double>(length(row_of(packed, row).front()));
    all += longest / static_cast<double>(rows);
    if (row < rows / 4) early += longest / static_cast<double>(rows / 4);
  }
  EXPECT_NEAR(early / all, 1, 0.05);
}

TEST(PackedRows, LittleRoomIsLeft) {
  for (const auto& [shortest, longest] : {std::pair{64, 2048}, {16, 512}, {2, 30}}) {
    const auto length = random_lengths(shortest, longest);
    PackedRows packed(kPackingWindow, 2048, 1, length);
    int64_t tokens = 0;
    for (int64_t i = 0; i < kPackingWindow; ++i) tokens += length(i);
    const double fill = static_cast<double>(tokens) / static_cast<double>(packed.first_row(1) * 2048);
    EXPECT_GT(fill, 0.99) << shortest << " to " << longest;
    EXPECT_LE(fill, 1);
  }
}

TEST(PackedRows, ALengthThatNoRowHoldsIsAnError) {
  for (const int64_t length : {0, 11}) {
    PackedRows packed(3, 10, 1, [=](int64_t) { return length; });
    EXPECT_THROW((void)packed.conversations(0), InternalError);
  }
  EXPECT_THROW(PackedRows(0, 10, 1, [](int64_t) { return 1; }), InternalError);
}

}  // namespace
}  // namespace pesc
