#include "runtime/metrics.h"

#include <fcntl.h>
#include <glog/logging.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "ops/core/check.h"

namespace pesc {
namespace {

constexpr size_t kMostWaiting = 16U << 20;

std::string clock_text(double seconds) {
  const auto s = static_cast<long long>(std::llround(std::max(0.0, seconds)));
  char text[32];
  if (s >= 3600) {
    std::snprintf(text, sizeof(text), "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
  } else {
    std::snprintf(text, sizeof(text), "%lld:%02lld", s / 60, s % 60);
  }
  return text;
}

// Where the last whole line ends: behind it is what a process was writing when it died. -1: errno says why.
off_t end_of_last_line(int file) {
  char buffer[4096];
  off_t end = ::lseek(file, 0, SEEK_END);
  while (end > 0) {
    const off_t begin = std::max<off_t>(0, end - static_cast<off_t>(sizeof(buffer)));
    const ssize_t n = ::pread(file, buffer, static_cast<size_t>(end - begin), begin);
    if (n < 0) return -1;
    for (ssize_t i = n; i > 0; --i) {
      if (buffer[i - 1] == '\n') return begin + i;
    }
    end = begin;
  }
  return end;
}

}  // namespace

nlohmann::json to_json(const StepMetrics& m) {
  nlohmann::json j;
  j["kind"] = "step";
  j["step"] = m.step;
  j["loss"] = m.loss;
  j["aux_loss"] = m.aux_loss;
  j["grad_norm"] = m.grad_norm;
  j["lr"] = m.lr;
  j["tokens"] = m.tokens;
  j["supervised_tokens"] = m.supervised;
  j["fill_rate"] = m.fill_rate;
  j["seconds"] = m.seconds;
  j["tokens_per_second"] = m.seconds > 0 ? m.tokens / m.seconds : 0.0;
  j["sol_fraction"] = m.seconds > 0 ? m.sol_seconds / m.seconds : 0.0;
  if (m.peak_seconds > 0 && m.seconds > 0) j["mfu"] = m.peak_seconds / m.seconds;
  j["flops"] = m.flops;
  j["bytes_sent_rank0"] = m.bytes_sent;
  j["dispatch_rounds"] = m.dispatch_rounds;
  if (m.nonfinite) j["nonfinite"] = m.skipped ? "skipped" : "retried";
  if (m.spike) j["loss_spike"] = m.skipped ? "skipped" : "updated";
  if (!m.expert_share.empty()) j["expert_share"] = m.expert_share;
  if (!m.tag_share.empty()) j["tag_expert_share"] = m.tag_share;
  for (const auto& [tag, tokens] : m.tag_tokens) {
    j["tag_tokens"][tag] = tokens;
    j["tag_token_share"][tag] = m.tokens > 0 ? tokens / m.tokens : 0.0;
  }
  return j;
}

std::string progress_line(const StepMetrics& m, double seconds_per_step) {
  char text[256];
  const double rate = m.seconds > 0 ? m.tokens / m.seconds : 0;
  const double sol = m.seconds > 0 ? 100 * m.sol_seconds / m.seconds : 0;
  char mfu[32] = "";
  if (m.peak_seconds > 0 && m.seconds > 0)
    std::snprintf(mfu, sizeof(mfu), "  %.0f%% MFU", 100 * m.peak_seconds / m.seconds);
  std::snprintf(text, sizeof(text),
                "step %lld/%lld  loss %.4f  aux loss %.3f  grad %.3g  %.1fk tok/s  %.0f%% SOL%s  %s left",
                static_cast<long long>(m.step), static_cast<long long>(m.steps), m.loss, m.aux_loss,
                m.grad_norm, rate / 1000, sol, mfu,
                clock_text(seconds_per_step * static_cast<double>(m.steps - m.step)).c_str());
  return text;
}

std::string mfu_text(double mfu) {
  char text[32] = "";
  if (mfu > 0) std::snprintf(text, sizeof(text), ", MFU %.2f", mfu);
  return text;
}

std::optional<double> eval_loss_of_step(const std::string& path, int64_t step) {
  std::optional<double> found;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json j = nlohmann::json::parse(line, nullptr, false);
    if (!j.is_object() || !j.contains("step") || !j["step"].is_number_integer()) continue;
    const std::string kind = j.value("kind", "");
    const auto of = j["step"].get<int64_t>();
    if (kind == "eval" && of == step && j.contains("eval_loss_total") && j["eval_loss_total"].is_number())
      found = j["eval_loss_total"].get<double>();
    if (kind == "launch" && of < step) found.reset();  // which computes the step again
  }
  return found;
}

MetricsLog::MetricsLog(const std::string& path, uint64_t launch) : path_(path), launch_(launch) {
  file_ = ::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (file_ < 0) throw IoError(str_cat(path, " cannot be written: ", std::strerror(errno)));
  const off_t whole = end_of_last_line(file_);
  if (whole < 0 || ::ftruncate(file_, whole) != 0) {
    const int why = errno;
    ::close(file_);
    throw IoError(str_cat(path, " cannot be read: ", std::strerror(why)));
  }
}

MetricsLog::~MetricsLog() {
  while (!waiting_.empty() && append(waiting_.front())) waiting_.pop_front();
  if (!waiting_.empty()) LOG(ERROR) << path_ << ": the last " << waiting_.size() << " records are lost";
  ::close(file_);
}

// All of it or, as far as the file system allows, nothing.
bool MetricsLog::append(const std::string& text) noexcept {
  struct stat before {};
  if (::fstat(file_, &before) != 0) return false;
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(file_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  if (done == text.size()) return true;
  const int why = errno;
  if (done > 0 && ::ftruncate(file_, before.st_size) != 0) return false;
  errno = why;
  return false;
}

void MetricsLog::write(nlohmann::json record) {
  record["launch"] = launch_;
  // A name in a record that is no UTF-8 ends no run.
  waiting_.push_back(record.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  waiting_bytes_ += waiting_.back().size();
  while (!waiting_.empty() && append(waiting_.front())) {
    waiting_bytes_ -= waiting_.front().size();
    waiting_.pop_front();
  }
  if (waiting_.empty()) {
    if (told_) LOG(INFO) << path_ << " is written again; " << dropped_ << " records are missing";
    told_ = false;
    dropped_ = 0;
    return;
  }
  if (const int why = errno; !told_) {
    LOG(ERROR) << path_ << " cannot be written: " << std::strerror(why)
               << ". Training goes on; its records wait in memory. Make room, or look at the disk.";
    told_ = true;
  }
  while (waiting_bytes_ > kMostWaiting) {
    waiting_bytes_ -= waiting_.front().size();
    waiting_.pop_front();
    ++dropped_;
  }
}

}  // namespace pesc
