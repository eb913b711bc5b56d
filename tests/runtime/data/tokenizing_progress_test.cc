#include "runtime/data/tokenizing_progress.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

namespace pesc {
namespace {

using Medium = ProgressPrinter::Medium;

TEST(TokenizingProgress, PercentIsOfTheBytes) {
  EXPECT_EQ((TokenizingProgress{"a", 0, 200, 0}).percent(), 0);
  EXPECT_EQ((TokenizingProgress{"a", 199, 200, 9}).percent(), 99);
  EXPECT_EQ((TokenizingProgress{"a", 200, 200, 9}).percent(), 100);
  EXPECT_EQ((TokenizingProgress{"a", 0, 0, 0, true}).percent(), 100);
}

TEST(TokenizingProgress, ABarOnATerminalIsWrittenOver) {
  std::vector<std::string> shown;
  ProgressPrinter printer(Medium::kTerminal, [&](const std::string& bar) { shown.push_back(bar); });
  printer.show({"a\x1b.jsonl", 0, 1000, 0});
  EXPECT_TRUE(shown.empty());
  std::this_thread::sleep_for(std::chrono::milliseconds(120));
  printer.show({"a\x1b.jsonl", 500, 1000, 12});
  printer.show({"a\x1b.jsonl", 510, 1000, 13});  // too soon
  ASSERT_EQ(shown.size(), 1U);
  EXPECT_TRUE(shown[0].starts_with("\r\033[Ktokenising a\\x1B.jsonl [" + std::string(15, '#') +
                                   std::string(15, '.') + "] 50 %, 12 rows, "))
      << shown[0];
  printer.show({"a\x1b.jsonl", 1000, 1000, 25, true});
  ASSERT_EQ(shown.size(), 2U);
  EXPECT_TRUE(shown[1].ends_with("MB/s\n")) << shown[1];
}

TEST(TokenizingProgress, WhatTakesNoTimeIsNotShown) {
  for (const Medium medium : {Medium::kTerminal, Medium::kLog}) {
    std::vector<std::string> shown;
    ProgressPrinter printer(medium, [&](const std::string& bar) { shown.push_back(bar); });
    for (const uint64_t bytes : {0, 50, 100}) printer.show({"a", bytes, 100, 1});
    printer.show({"a", 100, 100, 2, true});
    EXPECT_TRUE(shown.empty());
  }
}

}  // namespace
}  // namespace pesc
