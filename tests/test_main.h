// What the main() of every test program does: a case that skips itself says for want of what ("needs 4
// ranks", "no GPU test: ..."); any other skip is a failure, so that no case passes without having asserted
// anything.
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
    if (message.find("needs ") != std::string_view::npos ||
        message.find("no GPU test") != std::string_view::npos)
      return;
    std::fprintf(stderr, "%s:%d: this case skips itself without saying what it needs: '%s'\n",
                 r.file_name() == nullptr ? "" : r.file_name(), r.line_number(), r.message());
    unexplained_ = true;
  }
  bool unexplained_ = false;
};

// Runs the cases that the command line asks for; nonzero after a failure, an unexplained skip, or when there
// is no such case.
inline int run_all_tests() {
  auto* skips = new SkipsNeedAReason;  // GoogleTest owns it
  testing::UnitTest::GetInstance()->listeners().Append(skips);
  const int failed = RUN_ALL_TESTS();
  if (testing::UnitTest::GetInstance()->test_to_run_count() == 0) {
    std::fprintf(stderr, "no case of this program has such a name\n");
    return 1;
  }
  return failed != 0 || skips->unexplained() ? 1 : 0;
}

}  // namespace pesc
