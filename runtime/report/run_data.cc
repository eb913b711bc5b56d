#include "runtime/report/run_data.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string_view>
#include <utility>

#include "configs/schema/experiment.pb.h"
#include "ops/core/check.h"
#include "runtime/config/resolved.h"
#include "runtime/filesystem/filesystem.h"
#include "runtime/metrics/record_reader.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr double kMostPoints = 4000;         // of one curve of all runs
constexpr double kMostExpertValues = 160e3;  // of all runs
constexpr size_t kMostMarks = 200;
constexpr int64_t kMostConfig = 256 << 10;

size_t even_buckets(double value) {
  return std::clamp<size_t>(static_cast<size_t>(value), 100, 1000) & ~size_t{1};
}

// Adds up what the records of metrics.jsonl say.
class RunCollector {
 public:
  RunCollector(RunData& run, double share) : run_(run) {
    run.curves.assign(kReportedCurves.size(), MinMaxCurve(even_buckets(kMostPoints * share)));
    run.imbalance = MinMaxCurve(even_buckets(kMostPoints * share));
    run.experts = ExpertHistory(static_cast<size_t>(kMostExpertValues * share));
  }

  void add(const MetricsRecord& record) {
    const double time = number_in(record.object, "time", 0);
    const std::string_view kind = text_in(record.object, "kind");
    if (record.is_launch) {
      add_launch(record, time);
    } else if (kind == "step") {
      add_step(record, time);
    } else if (kind == "eval" && record.counts) {
      add_eval(record);
    } else {
      add_save(record);
    }
    if (time > 0) last_time_ = time;
  }

  void finish() {
    const auto phase = [this](const char* name, double seconds) {
      if (seconds > 0) run_.phases.emplace_back(name, seconds);
    };
    phase("training steps", step_seconds_ - copy_wait_);
    phase("steps computed again after a restart", lost_seconds_);
    phase("evaluation", eval_seconds_);
    phase("saving", save_seconds_ + copy_wait_);
    phase("start of the steps", start_seconds_);
    phase("between launches", down_seconds_);
    if (rates_.empty()) return;
    const auto middle = rates_.begin() + static_cast<int64_t>(rates_.size() / 2);
    std::nth_element(rates_.begin(), middle, rates_.end());
    run_.tokens_per_second = *middle;
  }

 private:
  void add_launch(const MetricsRecord& record, double time) {
    ReportedLaunch launch;
    launch.launch = static_cast<int64_t>(number_in(record.object, "launch", 0));
    launch.ranks = static_cast<int64_t>(number_in(record.object, "ranks", 0));
    launch.from_step = launch.last_step = record.step;
    launch.began = time;
    if (time > 0 && last_time_ > 0) down_seconds_ += std::max(0.0, time - last_time_);
    starting_ = true;
    run_.launches.push_back(launch);
  }

  void add_step(const MetricsRecord& record, double time) {
    const double seconds = number_in(record.object, "seconds", 0);
    if (!run_.launches.empty()) {
      ReportedLaunch& launch = run_.launches.back();
      launch.last_step = std::max(launch.last_step, record.step);
      if (starting_ && time > 0 && launch.began > 0)
        start_seconds_ += std::max(0.0, time - seconds - launch.began);
    }
    starting_ = false;
    if (!record.counts) {
      lost_seconds_ += seconds;
      ++run_.recomputed_steps;
      return;
    }
    ++run_.steps;
    run_.last_step = record.step;
    step_seconds_ += seconds;
    for (size_t i = 0; i < kReportedCurves.size(); ++i) {
      simdjson::dom::element value;
      if (record.object[kReportedCurves[i].key].get(value) != simdjson::SUCCESS) continue;
      const double number = number_in(record.object, kReportedCurves[i].key);
      run_.curves[i].add(record.step, number);
    }
    run_.last_loss = number_in(record.object, "loss");
    run_.tokens += number_in(record.object, "tokens", 0);
    run_.supervised += number_in(record.object, "supervised_tokens", 0);
    run_.flops += number_in(record.object, "flops", 0);
    if (const double rate = number_in(record.object, "tokens_per_second", 0); rate > 0)
      rates_.push_back(static_cast<float>(rate));
    if (const auto what = text_in(record.object, "nonfinite"); !what.empty())
      mark(record.step, str_cat("not finite, ", what));
    if (const auto what = text_in(record.object, "loss_spike"); !what.empty())
      mark(record.step, str_cat("loss spike, ", what));
    add_experts(record);
  }

  void add_experts(const MetricsRecord& record) {
    simdjson::dom::array layers;
    if (record.object["expert_share"].get(layers) != simdjson::SUCCESS) return;
    run_.experts.begin_step(record.step);
    all_.clear();
    int64_t count = 0;
    double busiest = 0;
    for (const simdjson::dom::element layer : layers) {
      if (!numbers_of(layer, some_) || some_.empty()) return;
      busiest = std::max(busiest,
                         *std::max_element(some_.begin(), some_.end()) * static_cast<double>(some_.size()));
      all_.insert(all_.end(), some_.begin(), some_.end());
      ++count;
    }
    run_.experts.add_layers(all_, count);
    run_.imbalance.add(record.step, busiest);
    simdjson::dom::object tags, tokens;
    if (record.object["tag_expert_share"].get(tags) != simdjson::SUCCESS ||
        record.object["tag_tokens"].get(tokens) != simdjson::SUCCESS)
      return;
    for (const auto [tag, share] : tags) {
      if (numbers_of(share, some_)) run_.experts.add_tag(tag, some_, number_in(tokens, tag, 0));
    }
  }

  void add_eval(const MetricsRecord& record) {
    eval_seconds_ += number_in(record.object, "seconds", 0);
    run_.eval_losses[""].emplace_back(record.step, number_in(record.object, "eval_loss_total"));
    simdjson::dom::object tags;
    if (record.object["eval_loss"].get(tags) != simdjson::SUCCESS) return;
    for (const auto [tag, loss] : tags) {
      double value = 0;
      if (!tag.empty() && loss.get(value) == simdjson::SUCCESS)
        run_.eval_losses[std::string(tag)].emplace_back(record.step, value);
    }
  }

  void add_save(const MetricsRecord& record) {
    copy_wait_ += number_in(record.object, "save_copy_wait_seconds", 0);
    save_seconds_ +=
        number_in(record.object, "save_stall_seconds", 0) + number_in(record.object, "save_poll_seconds", 0);
    simdjson::dom::element there;
    if (record.object["saved_step"].get(there) == simdjson::SUCCESS) ++run_.saves;
    if (const auto error = text_in(record.object, "save_failed"); !error.empty())
      mark(record.step, str_cat("not saved: ", printable(error)));
  }

  void mark(int64_t step, std::string what) {
    ++run_.marks_in_all;
    if (run_.marks.size() < kMostMarks) run_.marks.emplace_back(step, std::move(what));
  }

  RunData& run_;
  std::vector<double> some_, all_;
  std::vector<float> rates_;
  double last_time_ = 0, step_seconds_ = 0, lost_seconds_ = 0, eval_seconds_ = 0, save_seconds_ = 0,
         copy_wait_ = 0, start_seconds_ = 0, down_seconds_ = 0;
  bool starting_ = false;
};

// `j` is a line of launches.jsonl.
void add_end(const nlohmann::json& j, std::vector<ReportedLaunch>& launches) {
  const auto id = j.at("launch").get<int64_t>();
  auto at = std::find_if(launches.begin(), launches.end(),
                         [id](const ReportedLaunch& l) { return l.launch >= id; });
  if (at == launches.end() || at->launch != id) {  // it ended before its ranks began
    ReportedLaunch launch;
    launch.launch = id;
    launch.ranks = j.value("ranks", int64_t{0});
    launch.from_step = launch.last_step = j.value("last_step", int64_t{0});
    at = launches.insert(at, launch);
  }
  at->ended = true;
  at->seconds = j.value("seconds", 0.0);
  at->exit_code = j.value("exit_code", int64_t{0});
  at->status = printable(j.value("status", ""));
  at->error = printable(j.value("hang", ""));
  const nlohmann::json deaths = j.value("deaths", nlohmann::json::array());
  for (const nlohmann::json& death : deaths) {
    if (at->error.empty())
      at->error = str_cat("rank ", death.value("rank", 0), ": ", printable(death.value("error", ""), 400));
  }
}

// How launches ended. `pesc launch` alone writes the file.
void read_ends(RunData& run) {
  const std::string path = join_path(run.path, "launches.jsonl");
  if (posix_filesystem().kind(path) == FileKind::kNone) return;
  for_each_record_line(path, [&](std::string_view line, int64_t number) {
    try {
      add_end(nlohmann::json::parse(line), run.launches);
    } catch (const nlohmann::json::exception& error) {
      throw DataError(str_cat(path, ":", number, ": is no record of a launch (", error.what(),
                              "); the file is damaged: mend or remove the line"));
    }
  });
}

void read_config(RunData& run) {
  const std::string path = join_path(run.path, "experiment.textproto");
  if (!posix_filesystem().exists(path)) {
    run.notes.emplace_back("the run has no experiment.textproto");
    return;
  }
  run.config = posix_filesystem().read_all(path, kMostConfig);
  proto::Experiment e;
  try {
    e = read_recorded_experiment(run.config);
  } catch (const Error&) {
    run.notes.emplace_back("experiment.textproto is of another version of pesc, and is shown as it is");
    return;
  }
  if (!e.name().empty()) run.recipe["name"] = e.name();
  run.recipe["mode"] = proto::Mode::Value_Name(e.train().mode());
  if (!e.model().path().empty()) run.recipe["base"] = printable(e.model().path());
  if (e.train().has_max_steps()) run.recipe["planned steps"] = e.train().max_steps();
  run.recipe["global batch"] = e.train().global_batch_size();
  run.recipe["sequence length"] = e.data().max_seq_length();
  if (e.train().mode() == proto::Mode::PESC)
    run.recipe["experts"] = str_cat(e.moe().num_experts(), ", ", e.moe().num_experts_per_tok(), " a token");
  if (e.train().mode() != proto::Mode::FULL) run.recipe["LoRA rank"] = e.lora().r();
  run.recipe["device"] = proto::Device::Value_Name(e.parallel().device());
}

}  // namespace

RunData read_run(const std::string& path, double share) {
  FileSystem& files = posix_filesystem();
  RunData run;
  run.path = path;
  while (run.path.size() > 1 && run.path.ends_with('/')) run.path.pop_back();
  if (files.kind(run.path) == FileKind::kNone)
    throw UsageError(
        str_cat("--run ", in_quotes(path), ": there is no such folder; name the run_dir of a run"));
  const std::string metrics = join_path(run.path, "metrics.jsonl");
  if (files.kind(metrics) == FileKind::kNone)
    throw UsageError(str_cat("--run ", in_quotes(path),
                             ": has no metrics.jsonl; name the run_dir of a run that has begun"));
  const size_t slash = run.path.rfind('/');
  run.label = printable(
      slash == std::string::npos || slash + 1 == run.path.size() ? run.path : run.path.substr(slash + 1));
  read_config(run);
  RecordReader reader(metrics);
  RunCollector collector(run, share);
  reader.read([&](const MetricsRecord& record) { collector.add(record); });
  collector.finish();
  if (reader.torn()) run.notes.emplace_back("the last line of metrics.jsonl is not whole and is left out");
  if (run.steps == 0 && run.eval_losses.empty())
    throw UsageError(
        str_cat("--run ", in_quotes(path), ": metrics.jsonl has no step yet; wait for the first one"));
  read_ends(run);
  run.evaluations = read_evaluations(run.path);
  return run;
}

}  // namespace pesc
