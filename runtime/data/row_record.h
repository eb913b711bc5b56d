// What a checkpoint keeps of the training rows, so that a run does not go on with others: of each file its
// number of rows and the digest of what is trained on of them. The same on every rank and layout.
#pragma once

#include <string>
#include <vector>

#include "runtime/data/dataset.h"

namespace pesc {

// The record's name in a checkpoint's further state.
inline constexpr const char* kTrainingRows = "training_rows";

// One line a file of data.train: "ROWS DIGEST PATH\n".
[[nodiscard]] std::string row_record(const Dataset& dataset);

// What is different in `now`, a line each that names field and file; empty when nothing is. Paths and tags
// may differ. DataError where `before` is no such record.
[[nodiscard]] std::vector<std::string> row_differences(const std::string& before, const std::string& now);

}  // namespace pesc
