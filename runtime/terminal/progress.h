// How far a long piece of work has come, for the person who waits for it: a bar on a terminal, lines in a log.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>

namespace pesc {

// Where a ProgressBar draws. Tests give all three; the program takes progress_output().
struct ProgressOutput {
  std::function<void(std::string_view)> write;
  std::function<double()> seconds;  // of a steady clock
  int columns = 0;                  // of the terminal; 0: no terminal, lines are written
};
// The error output, with the width of its terminal (80 where mpirun passes it on).
[[nodiscard]] ProgressOutput progress_output();

enum class ProgressUnit {
  kBytes,  // "1.2 of 2.9 GiB"
  kCount,  // "1200 of 30000 rows"
};
// One rank reports, the others stay silent.
enum class ProgressShown { kYes, kNo };

// On a terminal: from half a second on, five times a second, one line that is written over in place and is
// erased by the destructor. The cursor is left at the line's beginning, so that whatever else is written then
// (a log line, an error) begins there and covers the bar, which appears again below it.
// Elsewhere: a whole line, at most one in 30 s and one for each 10 %; short work writes nothing.
//
//   ProgressBar bar("loading the model", bytes, ProgressUnit::kBytes, job.first() ? kYes : kNo);
//   for (...) bar.add(n);
class ProgressBar {
 public:
  // `total` 0: not known; then the amount done is shown without a share. `noun`: what is counted, "rows".
  ProgressBar(std::string what, int64_t total, ProgressUnit unit, ProgressShown shown, std::string noun = "",
              ProgressOutput output = progress_output());
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // So much more is done. Any thread may call it; it never waits for another thread.
  void add(int64_t amount);
  // So much is done in all.
  void set(int64_t done);

 private:
  void show();
  [[nodiscard]] std::string line(int64_t done, double seconds) const;

  const std::string what_, noun_;
  const int64_t total_;
  const ProgressUnit unit_;
  const bool shown_;
  const ProgressOutput output_;
  const double start_;
  std::atomic<int64_t> done_{0};
  std::mutex mutex_;    // of what follows
  double last_;         // when a line was written
  int64_t tenths_ = 0;  // of the total that the last line in a log told of
  bool drawn_ = false;
};

}  // namespace pesc
