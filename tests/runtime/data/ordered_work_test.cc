#include "runtime/data/ordered_work.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

namespace pesc {
namespace {

using Ints = OrderedWork<int, int>;

// Parts 0 to n - 1; later ones are done sooner.
struct Squares {
  explicit Squares(int parts) : n(parts) {}
  std::vector<int> taken;
  int n, given = 0;
  int bad_part = -1, bad_work = -1, bad_take = -1;

  void run(int threads) {
    Ints::run(
        threads,
        [this](int& part) {
          if (given == bad_part) throw std::runtime_error("part");
          part = given;
          return given++ < n;
        },
        [this](int&& part) {
          if (part % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
          if (part == bad_work) throw std::runtime_error("work");
          return part * part;
        },
        [this](int&& result) {
          if (std::ssize(taken) == bad_take) throw std::runtime_error("take");
          taken.push_back(result);
        });
  }
};

std::vector<int> squares(int n) {
  std::vector<int> all;
  for (int i = 0; i < n; ++i) all.push_back(i * i);
  return all;
}

TEST(OrderedWork, ResultsComeInTheOrderOfTheParts) {
  for (const int threads : {1, 2, 7}) {
    for (const int parts : {0, 1, 2, 500}) {
      Squares all(parts);
      all.run(threads);
      EXPECT_EQ(all.taken, squares(parts)) << threads << " threads";
    }
  }
}

TEST(OrderedWork, AnErrorComesWhenAllBeforeItIsTaken) {
  for (const int threads : {1, 3}) {
    for (const int at : {0, 20, 99}) {
      for (int Squares::*bad : {&Squares::bad_part, &Squares::bad_work, &Squares::bad_take}) {
        Squares all(100);
        all.*bad = at;
        EXPECT_THROW(all.run(threads), std::runtime_error) << threads << " threads, at " << at;
        EXPECT_EQ(all.taken, squares(at)) << threads << " threads";
      }
    }
  }
}

TEST(OrderedWork, FewPartsAreThereAtATime) {
  std::atomic<int> there = 0;
  int given = 0;
  int most = 0;
  Ints::run(
      2,
      [&](int& part) {
        part = 1;
        if (given++ == 200) return false;
        ++there;
        return true;
      },
      [](int&& part) { return part; },
      [&](int&&) {
        most = std::max(most, there.load());
        std::this_thread::sleep_for(std::chrono::microseconds(100));
        --there;
      });
  EXPECT_LE(most, 2 * 2 + 2);
}

}  // namespace
}  // namespace pesc
