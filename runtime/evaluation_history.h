// The eval losses of a run as far as train.early_stopping_patience needs them: the lowest one, and how many
// evaluations there were since. Every checkpoint has it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "runtime/data/dataset.h"

namespace pesc {

// A key of a checkpoint's `extra`.
inline constexpr const char* kEvaluationHistory = "evaluation_history";

class EvaluationHistory {
 public:
  EvaluationHistory() = default;
  // `rows`: evaluated_rows() of what is evaluated.
  explicit EvaluationHistory(std::string rows) : rows_(std::move(rows)) {}

  // Notes the evaluation at the end of a step. Returns whether its loss is below all before.
  bool add(int64_t step, double loss);
  [[nodiscard]] int64_t without_improvement() const { return since_; }  // evaluations since the lowest loss
  [[nodiscard]] bool empty() const { return step_ < 0; }
  [[nodiscard]] int64_t lowest_step() const { return step_; }
  [[nodiscard]] double lowest() const { return lowest_; }
  [[nodiscard]] const std::string& rows() const { return rows_; }

  [[nodiscard]] std::string save() const;
  // Throws DataError when `text` was not made by save().
  [[nodiscard]] static EvaluationHistory load(const std::string& text);

 private:
  std::string rows_ = "-";  // one word
  int64_t step_ = -1;       // of the lowest loss; -1: there was no evaluation
  double lowest_ = 0;
  int64_t since_ = 0;
};

// A word that tells evaluations apart whose losses cannot be compared: of the rows and train.max_eval_samples.
[[nodiscard]] std::string evaluated_rows(const Dataset& data, int64_t max_eval_samples);

}  // namespace pesc
