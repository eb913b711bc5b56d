#include "runtime/metrics/event_files.h"

#include <fcntl.h>
#include <glog/logging.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include "ops/core/check.h"
#include "runtime/filesystem/filesystem.h"
#include "runtime/metrics/unix_time.h"

namespace pesc {
namespace {

// A reader of TensorBoard takes every file with "tfevents" in its name, in the order of the names.
constexpr const char* kEventPrefix = "events.out.tfevents.";
constexpr const char* kEventSuffix = ".pesc";
constexpr const char* kNewEvents = "new-events.tmp.";
constexpr size_t kFlushBytes = 1U << 20;

std::string host_name() {
  char name[256] = "";
  if (::gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0') return "localhost";
  return name;
}

bool is_own_event_file(const std::string& name) {
  return (name.starts_with(kEventPrefix) && name.ends_with(kEventSuffix)) || name.starts_with(kNewEvents);
}

// Later than all that stand there: a TensorBoard that is running goes on to the next name only.
int64_t next_time(const std::vector<std::string>& names) {
  auto time = static_cast<int64_t>(unix_seconds());
  for (const std::string& name : names) {
    if (!name.starts_with(kEventPrefix)) continue;
    time = std::max<int64_t>(time, std::strtoll(name.c_str() + std::strlen(kEventPrefix), nullptr, 10) + 1);
  }
  return time;
}

using AddRecords = std::function<void(const std::function<void(const std::string&)>& add)>;

// Puts a new file in the place of those that this function has made before; others' files stay. Returns its path.
std::string replace_event_file(const std::string& run_dir, const char* part, const AddRecords& events) {
  FileSystem& files = posix_filesystem();
  const std::string above = join_path(run_dir, kTensorboardFolder), folder = join_path(above, part);
  files.create_directory(above);
  files.create_directory(folder);
  const std::vector<std::string> before = files.list(folder);
  char time[32];
  std::snprintf(time, sizeof(time), "%010lld", static_cast<long long>(next_time(before)));
  const std::string path =
      join_path(folder, str_cat(kEventPrefix, time, ".", host_name(), ".", ::getpid(), ".0", kEventSuffix));
  const std::string temporary = join_path(folder, str_cat(kNewEvents, ::getpid()));
  try {
    const auto file = files.create_file(temporary);
    std::string waiting;
    const auto flush = [&] {
      file->append(std::as_bytes(std::span(waiting)));
      waiting.clear();
    };
    const double now = unix_seconds();
    waiting = tf_record(file_version_event(now)) + tf_record(start_event(now, 0));
    events([&](const std::string& event) {
      waiting += tf_record(event);
      if (waiting.size() >= kFlushBytes) flush();
    });
    flush();
    file->sync();
    file->close();
  } catch (...) {
    try {
      files.remove(temporary);
    } catch (const IoError&) {  // it has a name that nobody reads; the next launch removes it
    }
    throw;
  }
  for (const std::string& name : before) {
    if (is_own_event_file(name)) files.remove(join_path(folder, name));
  }
  files.rename(temporary, path);
  files.sync_directory(folder);
  return path;
}

}  // namespace

TrainEvents::TrainEvents(const std::string& run_dir, int64_t step, int64_t histogram_steps)
    : histogram_steps_(std::max<int64_t>(histogram_steps, 1)) {
  path_ = replace_event_file(run_dir, "train", [&](const auto& add) {
    const std::string metrics = join_path(run_dir, "metrics.jsonl");
    if (!posix_filesystem().exists(metrics)) return;
    RecordReader(metrics).read([&](const MetricsRecord& record) {
      if (!record.counts || record.step > step) return;
      for (const std::string& event : events_of_record(record, histograms_at(record.step))) add(event);
    });
  });
  file_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (file_ < 0) throw io_error("open", path_, errno);
}

TrainEvents::~TrainEvents() {
  ::close(file_);
}

Histograms TrainEvents::histograms_at(int64_t step) const {
  return step == 1 || step % histogram_steps_ == 0 ? Histograms::kYes : Histograms::kNo;
}

// All of it or, as far as the file system allows, nothing: behind a torn record a reader finds no other.
void TrainEvents::append(const std::string& records) {
  struct stat before {};
  if (::fstat(file_, &before) != 0) throw io_error("look at", path_, errno);
  size_t done = 0;
  while (done < records.size()) {
    const ssize_t n = ::write(file_, records.data() + done, records.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int why = n < 0 ? errno : ENOSPC;
      if (done > 0 && ::ftruncate(file_, before.st_size) != 0)
        throw io_error("take a torn record from", path_, errno);
      throw io_error("write", path_, why);
    }
    done += static_cast<size_t>(n);
  }
}

void TrainEvents::add(const std::string& line) noexcept {
  try {
    MetricsRecord record;
    const simdjson::padded_string padded(line);
    record.line = line;
    int64_t step = 0;
    if (parser_.parse(padded).get(record.object) || record.object["step"].get(step)) return;
    record.step = step;
    std::string records;
    for (const std::string& event : events_of_record(record, histograms_at(step)))
      records += tf_record(event);
    if (!records.empty()) append(records);
    if (told_) LOG(INFO) << path_ << " is written again; the next launch makes up for what it lacks";
    told_ = false;
  } catch (const std::exception& error) {
    if (!told_)
      LOG(WARNING) << error.what() << "; training goes on, and metrics.jsonl has what this file lacks";
    told_ = true;
  }
}

void write_evaluation_events(const std::string& run_dir) {
  (void)replace_event_file(run_dir, "eval", [&](const auto& add) {
    for (const Evaluation& e : read_evaluations(run_dir)) {
      for (const std::string& event : events_of_evaluation(e)) add(event);
    }
  });
}

}  // namespace pesc
