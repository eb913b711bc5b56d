// pesc eval: eval loss, exact match of the generated answer and the experts used, per dataset tag.
#include <glog/logging.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launcher/command_line.h"
#include "runtime/base_digest.h"
#include "runtime/checkpoint/folder_before.h"
#include "runtime/evaluation.h"
#include "runtime/hf/atomic_file.h"
#include "runtime/metrics/evaluations_file.h"
#include "runtime/metrics/event_files.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

struct Report {
  EvalResults losses;
  ExactMatches matches;
  std::vector<AnsweredRow> answers;
};

void print_line(const std::string& name, const EvalResult& h, const ExactMatch& m) {
  char exact[32] = "-";  // plain text has no answers
  if (m.rows > 0)
    std::snprintf(exact, sizeof(exact), "%.3f", static_cast<double>(m.exact) / static_cast<double>(m.rows));
  std::printf("%-16s %12.4f %14s %8lld  ", name.c_str(), h.loss, exact, static_cast<long long>(m.rows));
  for (size_t e = 0; e < h.expert_share.size(); ++e) std::printf(" %zu:%.2f", e, h.expert_share[e]);
  std::printf("\n");
}

// The total stands apart, below: a dataset may have any name.
void print_table(const Report& r) {
  std::printf("%-16s %12s %14s %8s   %s\n", "dataset", "eval loss", "exact match", "rows", "experts (share)");
  for (const auto& [tag, h] : r.losses.tags) {
    const auto m = r.matches.tags.find(tag);
    print_line(printable(tag, kUncut), h, m == r.matches.tags.end() ? ExactMatch{} : m->second);
  }
  std::printf("\n");
  print_line("all", r.losses.total, r.matches.total);
}

nlohmann::json to_json(const EvalResult& h, const ExactMatch& m) {
  nlohmann::json d = {{"eval_loss", h.loss}, {"supervised_tokens", h.tokens}};
  if (!h.expert_share.empty()) d["expert_share"] = h.expert_share;
  if (m.rows == 0) return d;
  d["rows"] = m.rows;
  d["exact_match"] = static_cast<double>(m.exact) / static_cast<double>(m.rows);
  return d;
}

nlohmann::json to_json(const Report& r, const GenerateSection& how, int samples) {
  nlohmann::json j;
  j["total"] = to_json(r.losses.total, r.matches.total);
  for (const auto& [tag, h] : r.losses.tags) {
    const auto m = r.matches.tags.find(tag);
    j["datasets"][tag] = to_json(h, m == r.matches.tags.end() ? ExactMatch{} : m->second);
  }
  if (how.temperature > 0)
    j["sampling"] = {{"temperature", how.temperature}, {"top_p", how.top_p}, {"seed", how.seed}};
  // Spread over the file, so that several datasets are seen.
  const size_t shown = std::min(static_cast<size_t>(samples), r.answers.size());
  for (size_t i = 0; i < shown; ++i) {
    const AnsweredRow& a = r.answers[i * r.answers.size() / shown];
    j["samples"].push_back(
        {{"dataset", a.tag}, {"question", a.question}, {"expected", a.expected}, {"answer", a.answer}});
  }
  return j;
}

void print_samples(const nlohmann::json& j) {
  for (const auto& s : j.value("samples", nlohmann::json::array())) {
    const auto text = [&s](const char* key) {
      return printable(s[key].get<std::string>(), kUncut, Keep::kLines);
    };
    std::printf("\n[%s] %s\n  answer:   %s\n  expected: %s\n",
                printable(s["dataset"].get<std::string>(), kUncut).c_str(), text("question").c_str(),
                text("answer").c_str(), text("expected").c_str());
  }
}

// Whether the run directory of the experiment is a run's, and the checkpoint one of it.
bool is_of_run(const ExperimentConfig& config, const CommandLine& command) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (config.run_dir.empty() || !fs::exists(fs::path(config.run_dir) / kLaunchIdFile, error)) return false;
  if (command.checkpoint.empty() || command.checkpoint == "best") return true;
  fs::path checkpoint = fs::path(command.checkpoint).lexically_normal();
  if (!checkpoint.has_filename()) checkpoint = checkpoint.parent_path();
  const fs::path folder = checkpoint.has_parent_path() ? checkpoint.parent_path() : ".";
  return fs::equivalent(folder, config.run_dir, error);
}

// For `pesc report` and TensorBoard. The evaluation itself is done: that it cannot be recorded ends nothing.
void record_for_report(const ExperimentConfig& config, const CommandLine& command, const Report& report,
                       int64_t step) {
  if (!is_of_run(config, command)) return;
  try {
    nlohmann::json j = to_json(report, config.generate, static_cast<int>(kRecordedAnswers));
    j["step"] = step;
    if (command.base) j["base"] = true;
    record_evaluation(config.run_dir, j);
    if (config.metrics.tensorboard) write_evaluation_events(config.run_dir);
  } catch (const Error& error) {
    LOG(WARNING) << "the evaluation is not recorded: " << error.what();
  }
}

}  // namespace

int run_eval(const Process& process, const CommandLine& command) {
  ExperimentConfig config = read_experiment(process, command);
  const HostPlacement placement = place(process, config);
  Job job = open_job(process.world, placement, std::move(config), DataUse::kEval);
  const ExperimentConfig& c = job.config;
  std::unique_ptr<Dataset> data;
  std::vector<Row> rows;
  run_collectively(process.world, [&] {
    if (!c.data.evaluates())
      throw UsageError(
          "pesc eval: the experiment has no rows to evaluate; name files in data.eval, or set "
          "data.validation_fraction");
    data = load_eval_data(job, &rows);
  });
  log_data(job, "eval data", *data);
  const int64_t slots = inference_slots(c.data.max_seq_length);
  const int64_t batch_rows = slots * job.mesh().dp();
  const auto decoder = make_inference_decoder(job, batch_rows, c.data.max_seq_length, slots);
  int64_t step = 0;
  if (!command.base) {
    step = load_trainable_weights(job, *decoder, command.checkpoint, CheckpointUse::kEvaluate);
  } else if (job.adapter) {
    const BaseDigest digest = base_digest(job);
    run_collectively(process.world, [&] { check_adapter_base(job, digest); });
  }
  Report report;
  report.losses = *evaluate_loss(job, *decoder, *data, batch_rows, 0);
  report.answers = answer_rows(job, *decoder, rows, c.generate, slots, c.data.max_seq_length);
  report.matches = exact_match(report.answers);
  run_collectively(process.world, [&] {
    if (!job.first()) return;
    const nlohmann::json j = to_json(report, c.generate, command.samples);
    print_table(report);
    record_for_report(c, command, report, step);
    if (c.generate.temperature > 0) {
      std::printf("the answers were sampled: temperature %g, top_p %g, seed %llu\n", c.generate.temperature,
                  c.generate.top_p, static_cast<unsigned long long>(c.generate.seed));
    }
    print_samples(j);
    if (static_cast<size_t>(command.samples) > report.answers.size())
      LOG(WARNING) << "--samples " << command.samples << ": the evaluation has " << report.answers.size()
                   << " answers, and all are shown";
    if (command.out.empty()) return;
    AtomicFile file(command.out);
    file.write(j.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    file.commit();
  });
  return 0;
}

}  // namespace pesc
