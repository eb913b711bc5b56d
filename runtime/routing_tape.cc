#include "runtime/routing_tape.h"

#include <algorithm>
#include <filesystem>

namespace pesc {
namespace {

struct Record {
  uint32_t step = 0;
  uint32_t layer = 0;
  int64_t sample = 0;
  int32_t position = 0;
  int32_t tokens = 0;
  int32_t top_k = 0;
  int32_t zero = 0;
};
static_assert(sizeof(Record) == 32);

}  // namespace

RoutingRecorder::RoutingRecorder(const std::string& directory, uint64_t launch, int rank, int64_t top_k)
    : top_k_(top_k) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  path_ = str_cat(directory, "/routing-", launch, "-", rank, ".bin");
  file_.open(path_, std::ios::binary | std::ios::trunc);
  if (!file_) throw IoError(str_cat(path_, ": cannot be written; debug.routing_record names its directory"));
}

void RoutingRecorder::begin_step(int64_t step) {
  step_ = static_cast<uint32_t>(step);
  records_.clear();
}

void RoutingRecorder::end_step() {
  file_.write(records_.data(), static_cast<std::streamsize>(records_.size()));
  file_.flush();  // a run that is killed leaves whole steps
  records_.clear();
}

void RoutingRecorder::record(const Batch& batch, int64_t layer, const std::vector<int32_t>& experts) {
  const auto& samples = batch.slice_samples_host;
  const auto& positions = batch.slice_positions_host;
  for (size_t begin = 0; begin < samples.size();) {
    size_t end = begin + 1;
    while (end < samples.size() && samples[end] == samples[begin] && positions[end] == positions[end - 1] + 1)
      ++end;
    const Record head{step_,
                      static_cast<uint32_t>(layer),
                      samples[begin],
                      positions[begin],
                      static_cast<int32_t>(end - begin),
                      static_cast<int32_t>(top_k_),
                      0};
    records_.append(reinterpret_cast<const char*>(&head), sizeof(head));
    for (size_t i = begin * static_cast<size_t>(top_k_); i < end * static_cast<size_t>(top_k_); ++i) {
      records_.push_back(static_cast<char>(experts[i]));
    }
    begin = end;
  }
}

void RoutingRecorder::flush() {
  file_.flush();
  if (!file_) throw IoError(path_ + ": cannot be written (disk full?)");
}

RoutingReplay::RoutingReplay(const std::string& directory, int64_t top_k) : top_k_(top_k) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    if (entry.path().extension() != ".bin") continue;
    std::ifstream in(entry.path(), std::ios::binary);
    Record head;
    while (in.read(reinterpret_cast<char*>(&head), sizeof(head))) {
      if (head.tokens < 0 || head.tokens > (1 << 24))
        throw DataError(entry.path().string() + ": damaged routing record");
      if (head.top_k != top_k)
        throw DataError(
            str_cat(entry.path().string(), ": recorded with moe.top_k ", head.top_k, ", not ", top_k));
      Run run;
      run.position = head.position;
      run.experts.resize(static_cast<size_t>(head.tokens) * static_cast<size_t>(top_k));
      if (!in.read(reinterpret_cast<char*>(run.experts.data()),
                   static_cast<std::streamsize>(run.experts.size()))) {
        throw DataError(entry.path().string() + ": truncated routing record");
      }
      runs_[{head.step, head.layer, head.sample}].push_back(std::move(run));
    }
  }
  if (runs_.empty()) throw DataError(directory + ": no recorded routing (debug.routing_replay)");
}

const uint8_t* RoutingReplay::find(int64_t layer, int64_t sample, int32_t position) const {
  const auto k = static_cast<size_t>(top_k_);
  const auto found = runs_.find({step_, static_cast<uint32_t>(layer), sample});
  if (found == runs_.end()) return nullptr;
  for (const Run& run : found->second) {
    if (position < run.position) continue;
    const size_t at = static_cast<size_t>(position - run.position) * k;
    if (at < run.experts.size()) return run.experts.data() + at;
  }
  return nullptr;
}

void RoutingReplay::check(const HostBatch& batch, int64_t layers, int64_t experts) const {
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (size_t t = 0; t < batch.samples.size(); ++t) {
      const auto where = [&] {
        return str_cat("step ", step_, ", layer ", layer, ", row ", batch.samples[t],
                       " of the stream, position ", batch.positions[t]);
      };
      const uint8_t* chosen = find(layer, batch.samples[t], batch.positions[t]);
      if (chosen == nullptr) {
        throw DataError(str_cat("the recorded routing has no ", where(),
                                "; debug.routing_replay must name the record of a run of the same experiment "
                                "that came this far"));
      }
      for (int64_t j = 0; j < top_k_; ++j) {
        if (chosen[j] < experts) continue;
        throw DataError(str_cat("the recorded routing names expert ", static_cast<int>(chosen[j]), " at ",
                                where(), "; the model has ", experts, " (moe.experts)"));
      }
    }
  }
}

bool RoutingReplay::replay(const Batch& batch, int64_t layer, std::vector<int32_t>& experts) {
  const auto k = static_cast<size_t>(top_k_);
  for (size_t t = 0; t < batch.slice_samples_host.size(); ++t) {
    const uint8_t* chosen = find(layer, batch.slice_samples_host[t], batch.slice_positions_host[t]);
    PESC_CHECK(chosen != nullptr, "a token that was not checked");
    std::copy_n(chosen, k, experts.begin() + static_cast<int64_t>(t * k));
  }
  return true;
}

}  // namespace pesc
