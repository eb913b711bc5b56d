#include "runtime/metrics/evaluations_file.h"

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "ops/core/check.h"
#include "runtime/filesystem/filesystem.h"
#include "runtime/metrics/line_file.h"
#include "runtime/metrics/record_reader.h"
#include "runtime/metrics/unix_time.h"

namespace pesc {
namespace {

EvaluationScore score_of(const nlohmann::json& j) {
  EvaluationScore score;
  score.loss = j.at("eval_loss").get<double>();
  score.rows = j.value("rows", int64_t{0});
  score.exact = j.value("exact_match", 0.0);
  score.expert_share = j.value("expert_share", std::vector<double>{});
  return score;
}

Evaluation evaluation_of(const nlohmann::json& j) {
  Evaluation e;
  e.step = j.at("step").get<int64_t>();
  e.base = j.value("base", false);
  e.time = j.value("time", 0.0);
  e.total = score_of(j.at("total"));
  const nlohmann::json datasets = j.value("datasets", nlohmann::json::object());
  for (const auto& [tag, score] : datasets.items()) e.datasets[tag] = score_of(score);
  const nlohmann::json samples = j.value("samples", nlohmann::json::array());
  for (const nlohmann::json& a : samples)
    e.answers.push_back({a.at("dataset"), a.at("question"), a.at("expected"), a.at("answer")});
  return e;
}

}  // namespace

void record_evaluation(const std::string& run_dir, nlohmann::json report) {
  report["time"] = unix_seconds();
  LineFile file(join_path(run_dir, kEvaluationsFile), LineFile::Lock::kExclusive);
  const std::string line = report.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  if (!file.append(line)) throw IoError(str_cat(file.path(), " cannot be written: ", std::strerror(errno)));
}

std::vector<Evaluation> read_evaluations(const std::string& run_dir) {
  const std::string path = join_path(run_dir, kEvaluationsFile);
  if (posix_filesystem().kind(path) == FileKind::kNone) return {};
  std::map<std::pair<bool, int64_t>, Evaluation> newest;  // the base first
  for_each_record_line(path, [&](std::string_view line, int64_t number) {
    try {
      Evaluation e = evaluation_of(nlohmann::json::parse(line));
      newest[{!e.base, e.step}] = std::move(e);
    } catch (const nlohmann::json::exception& error) {
      throw DataError(str_cat(path, ":", number, ": is no evaluation (", error.what(),
                              "); the file is damaged: mend or remove the line"));
    }
  });
  std::vector<Evaluation> all;
  for (auto& [key, e] : newest) all.push_back(std::move(e));
  return all;
}

}  // namespace pesc
