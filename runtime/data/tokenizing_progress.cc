#include "runtime/data/tokenizing_progress.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr double kBarSeconds = 0.1;
constexpr double kLineSeconds = 5;
constexpr int kLinePercent = 10;

// "431000 rows, 21.3 MB/s"
std::string amounts(const TokenizingProgress& progress, double seconds) {
  char rate[32];
  std::snprintf(rate, sizeof rate, "%.1f",
                seconds > 0 ? static_cast<double>(progress.bytes) / 1e6 / seconds : 0.0);
  return str_cat(progress.rows, " rows, ", rate, " MB/s");
}

}  // namespace

int TokenizingProgress::percent() const {
  if (file_bytes == 0) return 100;
  return static_cast<int>(std::min(1.0, static_cast<double>(bytes) / static_cast<double>(file_bytes)) * 100);
}

ProgressPrinter::ProgressPrinter(Medium medium, std::function<void(const std::string&)> print)
    : medium_(medium), print_(std::move(print)) {}

void ProgressPrinter::show(const TokenizingProgress& progress) {
  const auto seconds = [](Clock::duration time) { return std::chrono::duration<double>(time).count(); };
  const Clock::time_point now = Clock::now();
  if (path_ != progress.path) {
    path_ = progress.path;
    begun_ = shown_ = now;
    percent_ = 0;
    bar_ = false;
  }
  const double since = seconds(now - shown_);
  const double all = seconds(now - begun_);
  const int percent = progress.percent();
  const std::string file = printable(progress.path);
  if (medium_ == Medium::kTerminal) {
    // No bar for what takes no time.
    if (progress.ended ? !bar_ : since < kBarSeconds) return;
    constexpr int kWidth = 30;
    const auto filled = static_cast<size_t>(percent * kWidth / 100);
    print_(str_cat("\r\033[Ktokenising ", file, " [", std::string(filled, '#'),
                   std::string(static_cast<size_t>(kWidth) - filled, '.'), "] ", percent, " %, ",
                   amounts(progress, all), progress.ended ? "\n" : ""));
    bar_ = true;
    shown_ = now;
    return;
  }
  if (progress.ended || percent < percent_ + kLinePercent || since < kLineSeconds) return;
  percent_ = percent / kLinePercent * kLinePercent;
  shown_ = now;
  print_(str_cat("tokenising ", file, ": ", percent, " %, ", amounts(progress, all)));
}

}  // namespace pesc
