// pesc eval: held-out loss, exact match of the generated answer and the experts used, per dataset tag.
#include <glog/logging.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "launcher/command_line.h"
#include "runtime/data/row_file.h"
#include "runtime/data/tags.h"
#include "runtime/evaluation.h"
#include "runtime/hf/atomic_file.h"

namespace pesc {
namespace {

std::vector<Row> held_out_rows(const ExperimentConfig& c) {
  std::vector<Row> rows;
  for (const SourceSection& s : c.data.eval) {
    RowOptions options;
    options.on_bad_row = c.data.on_bad_row == BadRowPolicy::kSkip ? OnBadRow::kSkip : OnBadRow::kFail;
    for (Row& row : read_rows(s.path, options)) {
      row.tag = tag_of(s.tag, row.tag, s.path);
      rows.push_back(std::move(row));
    }
  }
  return rows;
}

void print_table(const std::map<std::string, HeldOut>& losses,
                 const std::map<std::string, ExactMatch>& matches) {
  std::printf("%-16s %12s %14s %8s   %s\n", "dataset", "held-out loss", "exact match", "rows",
              "experts (share)");
  for (const auto& [tag, h] : losses) {
    const auto m = matches.find(tag);
    char exact[32] = "-";  // plain text has no answers
    long long rows = 0;
    if (m != matches.end() && m->second.rows > 0) {
      rows = m->second.rows;
      std::snprintf(exact, sizeof(exact), "%.3f",
                    static_cast<double>(m->second.exact) / static_cast<double>(rows));
    }
    std::printf("%-16s %12.4f %14s %8lld  ", tag.empty() ? "all" : tag.c_str(), h.loss, exact, rows);
    for (size_t e = 0; e < h.expert_share.size(); ++e) std::printf(" %zu:%.2f", e, h.expert_share[e]);
    std::printf("\n");
  }
}

nlohmann::json to_json(const std::map<std::string, HeldOut>& losses,
                       const std::map<std::string, ExactMatch>& matches,
                       const std::vector<AnsweredRow>& answers, int samples) {
  nlohmann::json j;
  for (const auto& [tag, h] : losses) {
    nlohmann::json& d = j["datasets"][tag.empty() ? "all" : tag];
    d["held_out_loss"] = h.loss;
    d["supervised_tokens"] = h.tokens;
    if (!h.expert_share.empty()) d["expert_share"] = h.expert_share;
    const auto m = matches.find(tag);
    if (m == matches.end() || m->second.rows == 0) continue;
    d["rows"] = m->second.rows;
    d["exact_match"] = static_cast<double>(m->second.exact) / static_cast<double>(m->second.rows);
  }
  for (int i = 0; i < samples && i < static_cast<int>(answers.size()); ++i) {
    // Spread over the file, so that several datasets are seen.
    const AnsweredRow& a = answers[static_cast<size_t>(i) * answers.size() / static_cast<size_t>(samples)];
    j["samples"].push_back(
        {{"dataset", a.tag}, {"question", a.question}, {"expected", a.expected}, {"answer", a.answer}});
  }
  return j;
}

}  // namespace

int run_eval(const Process& process, const CommandLine& command) {
  ExperimentConfig config = read_experiment(process, command);
  const HostPlacement placement = place(process, config);
  Job job = open_job(process.world, placement, std::move(config), DataUse::kHeldOut);
  const ExperimentConfig& c = job.config;
  std::unique_ptr<Dataset> data;
  std::vector<Row> rows;
  together(process.world, [&] {
    if (c.data.eval.empty()) throw UsageError("pesc eval: the experiment names no data.eval");
    data = load_held_out_data(job);
    rows = held_out_rows(c);
  });
  log_data(job, "held-out data", *data);
  const int64_t slots = inference_slots(c.train.seq_len);
  const int64_t micro_batch = slots * job.mesh().dp();
  const auto decoder = make_inference_decoder(job, micro_batch, c.train.seq_len, slots);
  if (!command.base) load_trained_values(job, *decoder, command.checkpoint);
  const auto losses = held_out_loss(job, *decoder, *data, micro_batch, 0);
  const auto answers = answer_rows(job, *decoder, rows, c.generate.max_tokens, slots, c.train.seq_len);
  const auto matches = exact_match(answers);
  together(process.world, [&] {
    if (!job.first()) return;
    const nlohmann::json j = to_json(losses, matches, answers, command.samples);
    print_table(losses, matches);
    for (const auto& s : j.value("samples", nlohmann::json::array())) {
      std::printf("\n[%s] %s\n  answer:   %s\n  expected: %s\n", s["dataset"].get<std::string>().c_str(),
                  s["question"].get<std::string>().c_str(), s["answer"].get<std::string>().c_str(),
                  s["expected"].get<std::string>().c_str());
    }
    if (command.out.empty()) return;
    AtomicFile file(command.out);
    file.write(j.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    file.commit();
  });
  return 0;
}

}  // namespace pesc
