// Arenas: what is planned is what is used, and scopes give back in stack order.
#include "ops/core/arena.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <utility>

namespace pesc {
namespace {

// One layout, run over a planning arena and over a real one.
void lay_out(Arena& arena) {
  (void)arena.allocate(3, 5);
  {
    Arena::Scope scope(arena);
    (void)arena.allocate(100, 7, DType::kF64);
    (void)arena.allocate(1, 1, DType::kU8);
  }
  (void)arena.allocate(9, 9, DType::kI64);
  (void)arena.allocate(0, 12);
}

TEST(Arena, PlanningCountsTheRealUse) {
  Arena plan = Arena::planning("plan");
  lay_out(plan);
  EXPECT_TRUE(plan.is_planning());
  EXPECT_GT(plan.peak(), 100 * 7 * 8);
  EXPECT_LT(plan.used(), plan.peak());
  Arena real("real", Device{}, plan.peak());
  lay_out(real);
  EXPECT_EQ(real.peak(), plan.peak());
  EXPECT_EQ(real.used(), plan.used());
  EXPECT_LE(real.peak(), real.capacity());
}

// Bytes of address space that this process has.
int64_t address_space() {
  std::ifstream statm("/proc/self/statm");
  int64_t pages = 0;
  statm >> pages;
  return pages * 4096;
}

// From 2 MiB on it begins on such a page, ends where it should, and gives everything back.
TEST(Arena, ALargeArenaLiesOnLargePagesAndGivesThemBack) {
  constexpr int64_t kLarge = int64_t{2} << 20;
  const int64_t before = address_space();
  for (int again = 0; again < 300; ++again) {
    for (const int64_t bytes : {kLarge - 256, kLarge, kLarge + 256, 5 * kLarge / 2 + 4352}) {
      Arena arena("large", Device{}, bytes);
      ASSERT_EQ(arena.capacity(), bytes);
      const Tensor all = arena.allocate(1, bytes, DType::kU8);
      auto* first = static_cast<unsigned char*>(all.data);
      if (bytes >= kLarge) {
        ASSERT_EQ(reinterpret_cast<uintptr_t>(first) % static_cast<uintptr_t>(kLarge), 0U);
      }
      for (unsigned char* byte : {first, first + bytes - 1}) {
        ASSERT_EQ(*byte, 0);
        *byte = 1;
      }
      const Arena moved = std::move(arena);
      ASSERT_EQ(moved.capacity(), bytes);
    }
  }
  // Not to give back what lies before or behind an arena would take twice as much; a sanitizer takes 128 MiB.
  EXPECT_LT(address_space() - before, 256 * kLarge);
}

TEST(Arena, PlanningTensorsHaveNoData) {
  Arena plan = Arena::planning("plan");
  const Tensor t = plan.allocate(2, 3);
  EXPECT_FALSE(t.present());
  EXPECT_EQ(t.rows, 2);
  EXPECT_EQ(t.ld, 3);
  EXPECT_EQ(plan.used(), Arena::kAlignment);
}

TEST(Arena, TooSmallIsABrokenInvariantThatNamesTheArena) {
  Arena arena("activations", Device{}, 1024);
  (void)arena.allocate(1, 128);
  try {
    (void)arena.allocate(1, 129);
    FAIL() << "129 floats more do not fit";
  } catch (const InternalError& error) {
    EXPECT_NE(std::string(error.what()).find("activations"), std::string::npos) << error.what();
    EXPECT_EQ(error.code(), ExitCode::kInternal);
  }
  EXPECT_EQ(arena.used(), 512);
  EXPECT_NO_THROW((void)arena.allocate(1, 128));
}

TEST(Arena, MemoryIsZeroedAlignedAndDisjoint) {
  Arena arena("weights", Device{}, 4096);
  const Tensor a = arena.allocate(3, 5);
  const Tensor b = arena.allocate(4, 4, DType::kF64);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data) % Arena::kAlignment, 0U);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data) % Arena::kAlignment, 0U);
  for (int i = 0; i < 15; ++i) EXPECT_EQ(a.f32()[i], 0.0F);
  for (int i = 0; i < 15; ++i) a.f32()[i] = 7;
  for (int i = 0; i < 16; ++i) EXPECT_EQ(b.f64()[i], 0.0);
}

TEST(Arena, ScopeGivesBackInStackOrder) {
  Arena arena("scratch", Device{}, 2048);
  const Tensor kept = arena.allocate(1, 64);
  void* first = nullptr;
  {
    Arena::Scope outer(arena);
    first = arena.allocate(1, 64).data;
    {
      Arena::Scope inner(arena);
      (void)arena.allocate(1, 300);
    }
    EXPECT_EQ(arena.used(), 512);
  }
  EXPECT_EQ(arena.used(), 256);
  EXPECT_EQ(arena.allocate(1, 64).data, first);
  EXPECT_NE(first, kept.data);
}

TEST(Arena, MovingTakesTheMemoryAlong) {
  Arena arena("moved", Device{}, 1024);
  const Tensor t = arena.allocate(1, 4);
  t.f32()[3] = 5;
  Arena other = std::move(arena);
  EXPECT_EQ(other.name(), "moved");
  EXPECT_EQ(other.used(), 256);
  EXPECT_EQ(t.f32()[3], 5.0F);
}

TEST(Arena, MoreThanTheMachineHasIsTheUsersError) {
  EXPECT_THROW(Arena("huge", Device{}, int64_t{1} << 60), UsageError);
}

}  // namespace
}  // namespace pesc
