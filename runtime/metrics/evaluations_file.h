// evaluations.jsonl of a run directory: what `pesc eval` has found, one line an evaluation.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace pesc {

inline constexpr const char* kEvaluationsFile = "evaluations.jsonl";
inline constexpr size_t kRecordedAnswers = 24;  // of an evaluation

struct EvaluationScore {
  double loss = 0;                   // nats per supervised token
  int64_t rows = 0;                  // with an answer
  double exact = 0;                  // share of them that are answered exactly
  std::vector<double> expert_share;  // [experts]; empty without experts
};
struct EvaluationAnswer {
  std::string dataset, question, expected, answer;
};
struct Evaluation {
  int64_t step = 0;   // of the checkpoint; 0: the dense base
  bool base = false;  // the dense base, without a checkpoint
  double time = 0;    // seconds since 1970
  EvaluationScore total;
  std::map<std::string, EvaluationScore> datasets;
  std::vector<EvaluationAnswer> answers;
};

// Appends the report of `pesc eval` (its JSON, with `step`, `base` and `samples`) to the run's file. Throws
// IoError.
void record_evaluation(const std::string& run_dir, nlohmann::json report);

// The evaluations of a run, the newest of each step (and of the base), by step. A last line without its newline
// is left out. Throws DataError naming the line for one that is no such record, IoError where the file cannot be
// read; a run without the file has none.
[[nodiscard]] std::vector<Evaluation> read_evaluations(const std::string& run_dir);

}  // namespace pesc
