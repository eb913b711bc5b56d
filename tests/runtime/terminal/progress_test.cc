#include "runtime/terminal/progress.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace pesc {
namespace {

constexpr int64_t kMiB = 1 << 20;

// What was written, and a clock that the test moves.
struct Screen {
  std::string text;
  double time = 100;
  ProgressOutput output(int columns) {
    return {[this](std::string_view t) { text += t; }, [this] { return time; }, columns};
  }
  std::string take() {
    std::string taken;
    taken.swap(text);
    return taken;
  }
};

TEST(ProgressBar, IsDrawnInPlaceOnATerminalAndErased) {
  Screen screen;
  {
    ProgressBar bar("loading the model", 200 * kMiB, ProgressUnit::kBytes, ProgressShown::kYes, "",
                    screen.output(80));
    screen.time += 0.4;
    bar.add(10 * kMiB);
    EXPECT_EQ(screen.take(), "") << "short work draws nothing";
    screen.time += 0.1;
    bar.add(40 * kMiB);
    EXPECT_EQ(screen.take(),
              "\r\033[Kloading the model  [#####...............]  25 %  50.0 of 200.0 MiB  0:02 left\r")
        << "the cursor is left at the beginning of the line";
    screen.time += 0.1;
    bar.add(kMiB);
    EXPECT_EQ(screen.take(), "") << "five times a second is enough";
    screen.time += 0.2;
    bar.set(200 * kMiB);
    EXPECT_NE(screen.take().find("[####################]  100 %  200.0 of 200.0 MiB"), std::string::npos);
  }
  EXPECT_EQ(screen.take(), "\r\033[K");
}

TEST(ProgressBar, FitsTheTerminal) {
  for (const int columns : {1, 2, 20, 40, 60, 80, 200}) {
    Screen screen;
    ProgressBar bar("evaluating", 1000, ProgressUnit::kCount, ProgressShown::kYes, "rows",
                    screen.output(columns));
    screen.time += 1;
    bar.add(500);
    const std::string text = screen.take();
    const std::string_view line = std::string_view(text).substr(4, text.size() - 5);
    EXPECT_LT(line.size(), static_cast<size_t>(columns)) << line;
    EXPECT_EQ(line.find('[') != std::string_view::npos, columns > 60) << line;
  }
}

TEST(ProgressBar, WritesFewWholeLinesIntoALog) {
  Screen screen;
  {
    ProgressBar bar("writing", 1000, ProgressUnit::kCount, ProgressShown::kYes, "rows", screen.output(0));
    screen.time += 29;
    bar.add(200);
    EXPECT_EQ(screen.take(), "") << "at most a line in 30 s";
    screen.time += 1;
    bar.add(50);
    EXPECT_EQ(screen.take(), "writing  25 %  250 of 1000 rows  1:30 left\n");
    screen.time += 30;
    bar.add(49);
    EXPECT_EQ(screen.take(), "") << "at most a line for each 10 %";
    bar.add(1);
    EXPECT_EQ(screen.take(), "writing  30 %  300 of 1000 rows  2:20 left\n");
    screen.time += 10000;
    bar.add(10);
    EXPECT_EQ(screen.take(), "");
  }
  EXPECT_EQ(screen.take(), "") << "nothing is erased in a log";
}

TEST(ProgressBar, ShowsTheAmountWhereTheTotalIsNotKnown) {
  Screen screen;
  ProgressBar bar("tokenising", 0, ProgressUnit::kCount, ProgressShown::kYes, "rows", screen.output(0));
  screen.time += 31;
  bar.add(70);
  EXPECT_EQ(screen.take(), "tokenising  70 rows\n");
  screen.time += 31;
  bar.add(30);
  EXPECT_EQ(screen.take(), "tokenising  100 rows\n");
}

TEST(ProgressBar, HoldsMoreThanTheTotalAtTheTotal) {
  Screen screen;
  ProgressBar bar("writing", 10, ProgressUnit::kCount, ProgressShown::kYes, "", screen.output(80));
  screen.time += 1;
  bar.add(25);
  EXPECT_NE(screen.take().find("100 %  10 of 10  0:00 left"), std::string::npos);
}

TEST(ProgressBar, IsSilentOnTheOtherRanks) {
  Screen screen;
  {
    ProgressBar bar("writing", 10, ProgressUnit::kCount, ProgressShown::kNo, "", screen.output(80));
    screen.time += 100;
    bar.add(5);
  }
  EXPECT_EQ(screen.take(), "");
}

TEST(ProgressBar, CountsWhatThreadsAdd) {
  Screen screen;
  ProgressBar bar("tokenising", 40000, ProgressUnit::kCount, ProgressShown::kYes, "rows", screen.output(80));
  screen.time += 1;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&bar] {
      for (int i = 0; i < 10000; ++i) bar.add(1);
    });
  for (std::thread& t : threads) t.join();
  screen.take();
  screen.time += 1;
  bar.add(0);
  EXPECT_NE(screen.take().find("40000 of 40000 rows"), std::string::npos);
}

}  // namespace
}  // namespace pesc
