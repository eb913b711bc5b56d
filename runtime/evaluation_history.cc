#include "runtime/evaluation_history.h"

#include <xxhash.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <sstream>
#include <vector>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {

bool EvaluationHistory::add(int64_t step, double loss) {
  const bool lowest = empty() || loss < lowest_;
  if (!lowest) {
    ++since_;
    return false;
  }
  step_ = step;
  lowest_ = loss;
  since_ = 0;
  return true;
}

std::string EvaluationHistory::save() const {
  std::ostringstream text;
  text.precision(std::numeric_limits<double>::max_digits10);
  text << rows_ << ' ' << step_ << ' ' << lowest_ << ' ' << since_;
  return text.str();
}

EvaluationHistory EvaluationHistory::load(const std::string& text) {
  EvaluationHistory history;
  std::istringstream words(text);
  std::string more;
  const bool good = (words >> history.rows_ >> history.step_ >> history.lowest_ >> history.since_) &&
                    !(words >> more) && history.step_ >= -1 && history.since_ >= 0 &&
                    std::isfinite(history.lowest_);
  if (!good)
    throw DataError(str_cat("a record of evaluations reads ", in_quotes(text),
                            "; the checkpoint was not written by pesc, or was changed"));
  return history;
}

std::string evaluated_rows(const Dataset& data, int64_t max_eval_samples) {
  std::vector<uint64_t> parts{static_cast<uint64_t>(max_eval_samples)};
  for (const DatasetContent& file : data.content()) parts.push_back(file.digest);
  char digest[20];
  std::snprintf(digest, sizeof digest, "%016llx",
                static_cast<unsigned long long>(XXH3_64bits(parts.data(), parts.size() * sizeof(uint64_t))));
  return digest;
}

}  // namespace pesc
