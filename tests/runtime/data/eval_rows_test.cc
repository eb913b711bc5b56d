// Which rows a limited evaluation takes.
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "runtime/data/sampler.h"

namespace pesc {
namespace {

using Rows = std::vector<int64_t>;

TEST(EvalRows, EveryFileGivesItsShareEvenlySpread) {
  EXPECT_EQ(rows_of_every_file({4, 4}, 4), (Rows{0, 2, 4, 6}));
  EXPECT_EQ(rows_of_every_file({100, 2}, 2), (Rows{0, 100}));
  EXPECT_EQ(rows_of_every_file({6, 3}, 3), (Rows{0, 3, 6}));
  EXPECT_EQ(rows_of_every_file({2, 0, 2}, 2), (Rows{0, 2}));
  EXPECT_EQ(rows_of_every_file({3, 2}, 0), (Rows{0, 1, 2, 3, 4}));
  EXPECT_EQ(rows_of_every_file({3, 2}, 9), (Rows{0, 1, 2, 3, 4}));
}

TEST(EvalRows, AsManyAsAskedForEachOnceInProportion) {
  for (const Rows& sizes : {Rows{1, 1, 1}, Rows{1000, 10, 1}, Rows{7, 5, 3, 2}, Rows{1}, Rows{50, 50, 50}}) {
    const int64_t total = std::reduce(sizes.begin(), sizes.end());
    for (auto limit = static_cast<int64_t>(sizes.size()); limit <= total; ++limit) {
      const Rows rows = rows_of_every_file(sizes, limit);
      ASSERT_EQ(static_cast<int64_t>(rows.size()), limit);
      EXPECT_TRUE(std::is_sorted(rows.begin(), rows.end()));
      EXPECT_EQ(std::set<int64_t>(rows.begin(), rows.end()).size(), rows.size());
      int64_t first = 0;
      for (const int64_t size : sizes) {
        const auto of_file = std::count_if(rows.begin(), rows.end(),
                                           [&](int64_t r) { return r >= first && r < first + size; });
        EXPECT_GE(of_file, 1);
        const double exact =
            static_cast<double>(limit) * static_cast<double>(size) / static_cast<double>(total);
        EXPECT_LE(std::abs(static_cast<double>(of_file) - exact), static_cast<double>(sizes.size())) << limit;
        first += size;
      }
    }
  }
}

TEST(EvalRows, MoreThanThereAreIsSaidWithBothNumbers) {
  EXPECT_EQ(
      beyond_all_rows({4, 0, 3}, 8),
      "train.max_eval_samples asks for 8 rows at a time, but there are 7 to evaluate: all of them are taken");
  EXPECT_EQ(beyond_all_rows({4, 0, 3}, 7), "");
  EXPECT_EQ(beyond_all_rows({4}, 0), "");  // all are asked for
}

TEST(EvalRows, ASamplerOverAListGoesThroughIt) {
  const Sampler sampler(10, Rows{1, 4, 9});
  EXPECT_EQ(sampler.epoch_size(), 10);
  for (const auto& [index, epoch, row] :
       {std::tuple<int64_t, int64_t, int64_t>{0, 0, 1}, {2, 0, 9}, {3, 1, 1}})
    EXPECT_EQ(sampler.place(index), (Sampler::Place{epoch, row}));
}

}  // namespace
}  // namespace pesc
