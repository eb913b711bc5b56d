// How far the rows of a file are tokenised, for people.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

namespace pesc {

struct TokenizingProgress {
  std::string path;
  uint64_t bytes = 0;       // of the file, compressed as it is, whose rows are done
  uint64_t file_bytes = 0;  // all of it
  int64_t rows = 0;
  bool ended = false;
  [[nodiscard]] int percent() const;  // of the bytes
};

// On a terminal a bar that is written over ten times a second; elsewhere a line for every 10 percent, and not
// more than one in five seconds, so that short files give none.
class ProgressPrinter {
 public:
  enum class Medium { kTerminal, kLog };
  // `print` gets the bar, which begins with "\r", or the line, which has no end.
  ProgressPrinter(Medium medium, std::function<void(const std::string&)> print);
  void show(const TokenizingProgress& progress);

 private:
  using Clock = std::chrono::steady_clock;
  Medium medium_;
  std::function<void(const std::string&)> print_;
  std::string path_;  // of the file that is shown
  Clock::time_point begun_, shown_;
  int percent_ = 0;  // shown last
  bool bar_ = false;
};

}  // namespace pesc
