// What the main() of every test program does: a case may skip itself only for want of a GPU ("no GPU test:
// ..."). Any other skip is a failure, so that no case passes without having asserted anything.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <string_view>

namespace pesc {

class SkipsNeedAReason : public testing::EmptyTestEventListener {
 public:
  [[nodiscard]] bool unexplained() const { return unexplained_; }

 private:
  void OnTestPartResult(const testing::TestPartResult& r) override {
    if (!r.skipped()) return;
    const std::string_view message = r.message() == nullptr ? "" : r.message();
    if (message.find("no GPU test") != std::string_view::npos) return;
    std::fprintf(stderr, "%s:%d: this case skips itself, but not for want of a GPU: '%s'\n",
                 r.file_name() == nullptr ? "" : r.file_name(), r.line_number(), r.message());
    unexplained_ = true;
  }
  bool unexplained_ = false;
};

// Runs the cases that the command line asks for; nonzero after a failure or another skip.
inline int run_all_tests() {
  auto* skips = new SkipsNeedAReason;  // GoogleTest owns it
  testing::UnitTest::GetInstance()->listeners().Append(skips);
  const int failed = RUN_ALL_TESTS();
  return failed != 0 || skips->unexplained() ? 1 : 0;
}

}  // namespace pesc
