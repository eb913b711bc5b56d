#include "runtime/terminal/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

#include "runtime/terminal/terminal.h"

namespace pesc {
namespace {

constexpr double kFirstDraw = 0.5, kEveryDraw = 0.2, kEveryLine = 30;  // seconds
constexpr int kCells = 20;                                             // of the bar
constexpr int kUsualColumns = 80;

// "1:05", "2:03:09"
std::string duration_text(double seconds) {
  const auto s = static_cast<long long>(seconds + 0.5);
  char text[40];
  if (s < 3600) {
    std::snprintf(text, sizeof(text), "%lld:%02lld", s / 60, s % 60);
  } else {
    std::snprintf(text, sizeof(text), "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
  }
  return text;
}

struct ByteUnit {
  double bytes;
  const char* name;
};
ByteUnit byte_unit(int64_t bytes) {
  if (bytes >= int64_t{1} << 30) return {1024.0 * 1024 * 1024, "GiB"};
  return {1024.0 * 1024, "MiB"};
}

// "1.2 of 2.9 GiB", "1200 of 30000 rows"; without a total "1.2 GiB", "1200 rows".
std::string amount(int64_t done, int64_t total, ProgressUnit unit, const std::string& noun) {
  char text[96];
  if (unit == ProgressUnit::kBytes) {
    const ByteUnit u = byte_unit(std::max(done, total));
    const double d = static_cast<double>(done) / u.bytes, t = static_cast<double>(total) / u.bytes;
    if (total > 0) {
      std::snprintf(text, sizeof(text), "%.1f of %.1f %s", d, t, u.name);
    } else {
      std::snprintf(text, sizeof(text), "%.1f %s", d, u.name);
    }
    return text;
  }
  std::string words = std::to_string(done);
  if (total > 0) words += " of " + std::to_string(total);
  return noun.empty() ? words : words + " " + noun;
}

}  // namespace

ProgressOutput progress_output() {
  ProgressOutput output;
  output.write = [](std::string_view text) { std::fwrite(text.data(), 1, text.size(), stderr); };
  output.seconds = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  if (!writes_to_terminal()) return output;
  struct winsize size {};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  output.columns = known ? size.ws_col : kUsualColumns;
  return output;
}

ProgressBar::ProgressBar(std::string what, int64_t total, ProgressUnit unit, ProgressShown shown,
                         std::string noun, ProgressOutput output)
    : what_(std::move(what)),
      noun_(std::move(noun)),
      total_(std::max<int64_t>(total, 0)),
      unit_(unit),
      shown_(shown == ProgressShown::kYes),
      output_(std::move(output)),
      start_(output_.seconds()),
      last_(start_) {}

ProgressBar::~ProgressBar() {
  if (drawn_) output_.write("\r\033[K");
}

void ProgressBar::add(int64_t amount) {
  done_ += amount;
  show();
}

void ProgressBar::set(int64_t done) {
  done_ = done;
  show();
}

void ProgressBar::show() {
  if (!shown_) return;
  // A thread that finds another one here has nothing to say that the next call would not say.
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return;
  const double now = output_.seconds();
  const int64_t done = total_ > 0 ? std::min<int64_t>(done_, total_) : done_.load();
  if (output_.columns > 0) {
    if (now - start_ < kFirstDraw || now - last_ < kEveryDraw) return;
    output_.write("\r\033[K" + line(done, now - start_) + "\r");
    drawn_ = true;
  } else {
    const int64_t tenths =
        total_ > 0 ? static_cast<int64_t>(10.0 * static_cast<double>(done) / static_cast<double>(total_))
                   : tenths_ + 1;
    if (now - last_ < kEveryLine || tenths <= tenths_) return;
    tenths_ = tenths;
    output_.write(line(done, now - start_) + "\n");
  }
  last_ = now;
}

// "loading the model  [########............]  41 %  1.2 of 2.9 GiB  0:12 left", cut to the terminal.
std::string ProgressBar::line(int64_t done, double seconds) const {
  std::string text = what_ + "  ", rest = amount(done, total_, unit_, noun_);
  std::string bar;
  if (total_ > 0) {
    const double share = std::clamp(static_cast<double>(done) / static_cast<double>(total_), 0.0, 1.0);
    const auto full = static_cast<size_t>(share * kCells);
    bar = "[" + std::string(full, '#') + std::string(kCells - full, '.') + "]  ";
    char percent[16];
    std::snprintf(percent, sizeof(percent), "%d %%  ", static_cast<int>(100 * share));
    rest = percent + rest;
    if (share > 0.01) rest += "  " + duration_text(seconds / share * (1 - share)) + " left";
  }
  if (output_.columns == 0) return text + rest;
  // A line that fills the last column would wrap.
  const auto room = static_cast<size_t>(output_.columns - 1);
  if (text.size() + bar.size() + rest.size() <= room) text += bar;
  return (text + rest).substr(0, room);
}

}  // namespace pesc
