// The layout of the adapter experts on a GPU: sizes alone, which a plan asks for where there is no GPU.
#include "ops/adapter_scratch.h"

#include <gtest/gtest.h>

#include "ops/adapter.h"

namespace pesc {
namespace {

TEST(AdapterScratch, CoversBothFormsWhateverTheCounts) {
  for (const DType t : {DType::kF32, DType::kBF16}) {
    for (const int64_t experts : {2, 3, 8, 64}) {
      for (const int64_t dim : {1, 8, 64, 512}) {
        for (const int64_t k : {1, 2, 6}) {
          constexpr int64_t kRows = 100;
          for (int64_t assignments = 1; assignments <= kRows * k; assignments += 7) {
            if (adapter_form(t, kRows, assignments, experts, dim) != AdapterForm::kDense) continue;
            Arena arena = Arena::planning("dense");
            (void)AdapterLists(arena, kRows, k);
            (void)AdapterDenseScratch(arena, kRows, 256, experts, experts * dim, t);
            EXPECT_LE(arena.peak(),
                      adapter_scratch_bytes(Device{.kind = DeviceKind::kCuda}, kRows, k, 256, dim, t))
                << experts << " experts of " << dim << ", k " << k << ", " << assignments << " assignments";
          }
        }
      }
    }
  }
}

TEST(AdapterScratch, FormsOfThePaperAndOfTheScript) {
  constexpr int64_t kTokens = 16384;
  EXPECT_EQ(adapter_form(DType::kBF16, kTokens, 2 * kTokens, 8, 64), AdapterForm::kDense);
  EXPECT_EQ(adapter_form(DType::kBF16, kTokens, 2 * kTokens, 8, 512), AdapterForm::kGrouped);
  EXPECT_EQ(adapter_form(DType::kBF16, kTokens, kTokens, 1, 512), AdapterForm::kGrouped);
  EXPECT_EQ(adapter_form(DType::kBF16, 0, 0, 8, 64), AdapterForm::kGrouped);
}

}  // namespace
}  // namespace pesc
