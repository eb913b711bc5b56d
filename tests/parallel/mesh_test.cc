// The rank arithmetic, exhaustively for up to 16 ranks, against its definition.
#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "ops/core/check.h"

namespace pesc {
namespace {

template <class Fn>  // Fn(world, tp, ep)
void for_layouts(Fn&& fn) {
  for (int world = 1; world <= 16; ++world)
    for (int tp = 1; tp <= world; ++tp)
      for (int ep = 1; ep <= world; ++ep)
        if (world % tp == 0 && world % ep == 0) fn(world, tp, ep);
}

// Every rank is in exactly one group, its own, and all members name the same group of `size` rising ranks.
template <class MembersOf>
void expect_partition(int world, int size, MembersOf&& members_of) {
  std::set<std::vector<int>> groups;
  std::vector<int> seen(static_cast<size_t>(world), 0);
  for (int rank = 0; rank < world; ++rank) {
    const std::vector<int> members = members_of(rank);
    ASSERT_EQ(static_cast<int>(members.size()), size);
    EXPECT_TRUE(std::is_sorted(members.begin(), members.end()));
    EXPECT_EQ(std::count(members.begin(), members.end(), rank), 1);
    if (groups.insert(members).second)
      for (const int r : members) ++seen.at(static_cast<size_t>(r));
  }
  EXPECT_EQ(static_cast<int>(groups.size()) * size, world);
  for (const int n : seen) EXPECT_EQ(n, 1);
}

TEST(Mesh, GroupsPartitionTheWorld) {
  for_layouts([](int world, int tp, int ep) {
    SCOPED_TRACE(str_cat("world ", world, " tp ", tp, " ep ", ep));
    expect_partition(world, tp, [&](int r) { return Mesh(world, r, tp, ep).tp_members(); });
  });
}

TEST(Mesh, RanksAreNumberedWithinTheirGroups) {
  for_layouts([](int world, int tp, int ep) {
    for (int rank = 0; rank < world; ++rank) {
      const Mesh m(world, rank, tp, ep);
      EXPECT_EQ(m.dp_rank() * tp + m.tp_rank(), rank);
      EXPECT_EQ(m.ep_group() * ep + m.ep_rank(), rank);
      EXPECT_EQ(m.dp() * m.tp(), world);
      EXPECT_EQ(m.tp_members().at(static_cast<size_t>(m.tp_rank())), rank);
      EXPECT_EQ(m.tp_members().back() - m.tp_members().front(), tp - 1);  // adjacent
      EXPECT_EQ(m.ep_members().at(static_cast<size_t>(m.ep_rank())), rank);
      EXPECT_EQ(m.ep_members().back() - m.ep_members().front(), ep - 1);
    }
  });
}

TEST(Mesh, EachGroupHoldsEachExpertOnce) {
  for_layouts([](int world, int tp, int ep) {
    for (int64_t experts = ep; experts <= 3 * ep; experts += ep) {
      std::map<int, std::vector<int>> held;  // ep group -> times each expert is held
      for (int rank = 0; rank < world; ++rank) {
        const Mesh m(world, rank, tp, ep);
        auto& counts = held[m.ep_group()];
        counts.resize(static_cast<size_t>(experts));
        const Range own = m.experts(experts);
        EXPECT_EQ(own.size(), experts / ep);
        for (int64_t e = own.begin; e < own.end; ++e) {
          ++counts.at(static_cast<size_t>(e));
          EXPECT_EQ(static_cast<int>(e / (experts / ep)), m.ep_rank());
        }
      }
      for (const auto& [group, counts] : held)
        for (const int n : counts) EXPECT_EQ(n, 1) << "group " << group;
    }
  });
}

TEST(Mesh, RefusesWhatDoesNotDivide) {
  for (int world = 1; world <= 16; ++world) {
    for (int tp = -1; tp <= world + 1; ++tp) {
      if (tp >= 1 && world % tp == 0) continue;
      EXPECT_THROW(Mesh(world, 0, tp, 1), UsageError) << world << " " << tp;
      EXPECT_THROW(Mesh(world, 0, 1, tp), UsageError) << world << " " << tp;
    }
    EXPECT_THROW(Mesh(world, world, 1, 1), UsageError);
    EXPECT_THROW(Mesh(world, -1, 1, 1), UsageError);
  }
  EXPECT_THROW(Mesh(0, 0, 1, 1), UsageError);
  EXPECT_THROW((void)Mesh(4, 0, 1, 4).experts(6), UsageError);
  EXPECT_THROW((void)Mesh(4, 0, 1, 4).experts(0), UsageError);
}

TEST(Mesh, ErrorsNameTheFieldAndTheNumbers) {
  try {
    Mesh(8, 0, 3, 1);
    FAIL();
  } catch (const UsageError& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    EXPECT_NE(std::string(e.what()).find("tp = 3 does not divide the 8 ranks"), std::string::npos)
        << e.what();
  }
}

TEST(SplitRange, PiecesAreEqualAndTheLastMayBeShort) {
  for (int64_t total = 0; total <= 20; ++total) {
    for (int parts = 1; parts <= 9; ++parts) {
      const int64_t piece = (total + parts - 1) / parts;
      int64_t at = 0;
      for (int i = 0; i < parts; ++i) {
        const Range r = split_range(total, parts, i);
        EXPECT_EQ(r.begin, at);
        EXPECT_LE(r.size(), piece);
        if (r.end < total) {
          EXPECT_EQ(r.size(), piece);
        }
        at = r.end;
      }
      EXPECT_EQ(at, total);
    }
  }
}

}  // namespace
}  // namespace pesc
