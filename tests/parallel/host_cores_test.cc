// Which ranks of a host were given the same cores.
#include "parallel/host_cores.h"

#include <gtest/gtest.h>

namespace pesc {
namespace {

std::vector<uint64_t> bits_of(const std::vector<std::vector<int>>& ranks) {
  std::vector<uint64_t> all;
  for (const auto& cores : ranks) {
    const auto bits = core_bits(cores);
    all.insert(all.end(), bits.begin(), bits.end());
  }
  return all;
}

TEST(HostCores, RanksAreCountedThatHaveTheSameMask) {
  const std::vector<int> one{0, 1, 63, 64}, two{2, 1023};
  const auto bits = bits_of({one, two, one, two, one});
  const auto expect = [&](int rank, const std::vector<int>& cores, int sharers, int index) {
    const HostCores mine = share_cores(bits, rank);
    EXPECT_EQ(mine.cores, cores) << rank;
    EXPECT_EQ(mine.sharers, sharers) << rank;
    EXPECT_EQ(mine.index, index) << rank;
  };
  expect(0, one, 3, 0);
  expect(1, two, 2, 0);
  expect(2, one, 3, 1);
  expect(3, two, 2, 1);
  expect(4, one, 3, 2);
}

TEST(HostCores, OneRankHasAllCoresThatItMayUse) {
  const HostCores mine = share_cores(bits_of({{7}}), 0);
  EXPECT_EQ(mine.cores, std::vector<int>{7});
  EXPECT_EQ(mine.sharers, 1);
  EXPECT_FALSE(cores_of_start().empty());
}

}  // namespace
}  // namespace pesc
