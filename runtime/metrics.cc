#include "runtime/metrics.h"

#include <glog/logging.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#include "runtime/metrics/unix_time.h"

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
  if (m.fp8_flops > 0) j["fp8_flops"] = m.fp8_flops;
  j["bytes_sent_rank0"] = m.bytes_sent;
  j["dispatch_rounds"] = m.dispatch_rounds;
  if (m.memory_bytes > 0) j["memory_bytes"] = m.memory_bytes;
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

MetricsLog::MetricsLog(const std::string& path, uint64_t launch)
    : file_(path, LineFile::Lock::kNone), launch_(launch) {}

MetricsLog::~MetricsLog() {
  while (!waiting_.empty() && file_.append(waiting_.front())) waiting_.pop_front();
  if (!waiting_.empty())
    LOG(ERROR) << file_.path() << ": the last " << waiting_.size() << " records are lost";
}

void MetricsLog::on_record(std::function<void(const std::string& line)> call) {
  on_record_ = std::move(call);
}

void MetricsLog::write(nlohmann::json record) {
  record["launch"] = launch_;
  record["time"] = std::round(unix_seconds() * 1e3) / 1e3;
  // A name in a record that is no UTF-8 ends no run.
  waiting_.push_back(record.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  waiting_bytes_ += waiting_.back().size();
  if (on_record_) on_record_(waiting_.back());
  while (!waiting_.empty() && file_.append(waiting_.front())) {
    waiting_bytes_ -= waiting_.front().size();
    waiting_.pop_front();
  }
  if (waiting_.empty()) {
    if (told_) LOG(INFO) << file_.path() << " is written again; " << dropped_ << " records are missing";
    told_ = false;
    dropped_ = 0;
    return;
  }
  if (const int why = errno; !told_) {
    LOG(ERROR) << file_.path() << " cannot be written: " << std::strerror(why)
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
