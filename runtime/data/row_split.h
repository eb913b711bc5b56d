// data.validation_fraction: which rows of the training files are evaluated instead of trained on.
//
// A row's side depends on its content alone: its system text, questions, answers, plain text, and which
// answers are learned, whatever form it is written in. So equal rows are on one side, and a row stays on its
// side with another seed, on another layout, in another order, and when rows are added.
#pragma once

#include <cstdint>

#include "runtime/data/rows.h"

namespace pesc {

// XXH3-64 of the content. Tags are not in it.
[[nodiscard]] uint64_t content_digest(const Row& row);

enum class RowPart { kAll, kTraining, kValidation };

struct RowSplit {
  double validation_fraction = 0;
  RowPart part = RowPart::kAll;
  // Whether the row is in `part`.
  [[nodiscard]] bool takes(const Row& row) const;
};

}  // namespace pesc
