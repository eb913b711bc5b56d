#include "runtime/router_replay.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <iterator>
#include <set>
#include <utility>

#include "ops/core/check.h"
#include "runtime/filesystem/filesystem.h"

namespace pesc {
namespace {

constexpr int32_t kMostTokens = 1 << 24;

// A mixture of runs, or of launches that call themselves by one number, is nobody's routing.
void refuse_mixtures(const std::string& directory, const std::vector<RoutingFile>& files) {
  for (size_t i = 1; i < files.size(); ++i) {
    const RoutingOwner &a = files[i - 1].owner, &b = files[i].owner;
    const std::string both = str_cat("debug.routing_replay: '", directory, "' holds ");
    if (a.run != b.run) {
      throw DataError(str_cat(both, "the records of two runs: '", routing_file_name(a), "' of run ", a.run,
                              " and '", routing_file_name(b), "' of run ", b.run, "; leave those of one"));
    }
    if (a.launch == b.launch && a.ranks != b.ranks) {
      throw DataError(str_cat(both, "records of two launches under one number: '", routing_file_name(a),
                              "' of ", a.ranks, " ranks and '", routing_file_name(b), "' of ", b.ranks,
                              "; leave those of one"));
    }
  }
}

}  // namespace

RouterReplayRecorder::RouterReplayRecorder(const std::string& directory, const RoutingOwner& owner)
    : top_k_(owner.top_k) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  path_ = join_path(directory, routing_file_name(owner));
  // Of two runs that begin at the same time only one makes it.
  const int fd = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0 && errno == EEXIST) {
    throw UsageError(str_cat("debug.routing_record: '", path_, "' is there already; run ", owner.run,
                             " does not write over it: name another folder"));
  }
  if (fd >= 0) ::close(fd);
  file_.open(path_, std::ios::binary | std::ios::app);
  file_ << routing_first_line(owner) << std::flush;
  if (!file_) throw IoError(str_cat(path_, ": cannot be written; debug.routing_record names its directory"));
}

void RouterReplayRecorder::begin_step(int64_t step) {
  step_ = static_cast<uint32_t>(step);
  records_.clear();
}

void RouterReplayRecorder::end_step() {
  put({step_, kEndOfStep, -1, 0, 0, static_cast<int32_t>(top_k_), 0});
  file_.write(records_.data(), static_cast<std::streamsize>(records_.size()));
  file_.flush();  // a run that is killed leaves whole steps
  records_.clear();
}

void RouterReplayRecorder::record(const Batch& batch, int64_t layer, const std::vector<int32_t>& experts) {
  const auto& samples = batch.slice_samples_host;
  const auto& positions = batch.slice_positions_host;
  for (size_t begin = 0; begin < samples.size();) {
    size_t end = begin + 1;
    while (end < samples.size() && samples[end] == samples[begin] && positions[end] == positions[end - 1] + 1)
      ++end;
    put({step_, static_cast<uint32_t>(layer), samples[begin], positions[begin],
         static_cast<int32_t>(end - begin), static_cast<int32_t>(top_k_), 0});
    for (size_t i = begin * static_cast<size_t>(top_k_); i < end * static_cast<size_t>(top_k_); ++i) {
      records_.push_back(static_cast<char>(experts[i]));
    }
    begin = end;
  }
}

void RouterReplayRecorder::flush() {
  file_.flush();
  if (!file_) throw IoError(path_ + ": cannot be written; is the disk full?");
}

RouterReplayReader::RouterReplayReader(const std::string& directory, int64_t top_k) : top_k_(top_k) {
  const std::vector<RoutingFile> files = routing_files(directory);
  if (files.empty())
    throw DataError(directory +
                    ": holds no recorded routing; debug.routing_replay names a folder that "
                    "debug.routing_record has filled");
  refuse_mixtures(directory, files);
  // The last launch first: the run went on from what it computed. A step counts where every rank has finished
  // it.
  std::set<uint32_t> taken;
  for (auto end = files.rbegin(); end != files.rend();) {
    const RoutingOwner& launch = end->owner;
    std::map<uint32_t, Runs> steps;
    std::map<uint32_t, int> ranks;  // that have finished it
    for (; end != files.rend() && end->owner.launch == launch.launch; ++end) {
      for (auto& [step, runs] : read_steps(*end)) {
        ++ranks[step];
        for (auto& [key, of_sample] : runs) {
          std::vector<Run>& all = steps[step][key];
          std::move(of_sample.begin(), of_sample.end(), std::back_inserter(all));
        }
      }
    }
    for (const auto& [step, finished] : ranks) {
      if (finished == launch.ranks && taken.insert(step).second) runs_.merge(steps[step]);
    }
  }
}

std::map<uint32_t, RouterReplayReader::Runs> RouterReplayReader::read_steps(const RoutingFile& file) const {
  const auto refuse = [&](const std::string& why) { throw DataError(str_cat(file.path, ": ", why)); };
  if (file.owner.top_k != top_k_)
    refuse(str_cat("was recorded with moe.num_experts_per_tok ", file.owner.top_k, ", not ", top_k_));
  std::ifstream in(file.path, std::ios::binary);
  in.seekg(static_cast<std::streamoff>(file.records_at));
  std::map<uint32_t, Runs> finished;
  Runs runs;
  RoutingRecord head;
  while (in.read(reinterpret_cast<char*>(&head), sizeof(head))) {
    if (head.tokens < 0 || head.tokens > kMostTokens || head.top_k != top_k_)
      refuse("is damaged, or no record of routing");
    if (head.layer == kEndOfStep) {
      if (!finished.try_emplace(head.step, std::move(runs)).second)
        refuse(str_cat("holds step ", head.step, " twice"));
      runs = {};
      continue;
    }
    Run run;
    run.position = head.position;
    run.experts.resize(static_cast<size_t>(head.tokens) * static_cast<size_t>(top_k_));
    if (!in.read(reinterpret_cast<char*>(run.experts.data()),
                 static_cast<std::streamsize>(run.experts.size())))
      break;
    runs[{head.step, head.layer, head.sample}].push_back(std::move(run));
  }
  return finished;
}

const uint8_t* RouterReplayReader::find(int64_t layer, int64_t sample, int32_t position) const {
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

void RouterReplayReader::check(const HostBatch& batch, int64_t layers, int64_t experts) const {
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
                                where(), "; the model has ", experts, " (moe.num_experts)"));
      }
    }
  }
}

bool RouterReplayReader::replay(const Batch& batch, int64_t layer, std::vector<int32_t>& experts) {
  const auto k = static_cast<size_t>(top_k_);
  for (size_t t = 0; t < batch.slice_samples_host.size(); ++t) {
    const uint8_t* chosen = find(layer, batch.slice_samples_host[t], batch.slice_positions_host[t]);
    PESC_CHECK(chosen != nullptr, "a token that was not checked");
    std::copy_n(chosen, k, experts.begin() + static_cast<int64_t>(t * k));
  }
  return true;
}

}  // namespace pesc
