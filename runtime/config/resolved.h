// The protobuf side of an experiment: reading its text, and the resolved text with every default spelled out.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/experiment.pb.h"
#include "runtime/config/field_places.h"

namespace pesc {

// Parses `text`, applies the overrides in order and fills the defaults that depend on other fields
// (num_key_value_heads, head_dim, tokenizer, target_modules). `where` stands for the file in messages. Throws
// UsageError.
[[nodiscard]] proto::Experiment read_experiment_text(const std::string& text, const std::string& where,
                                                     const std::vector<std::string>& overrides,
                                                     FieldPlaces& places);

// The resolved text of a checkpoint, perhaps of an earlier version, with every default of today where it says
// nothing. Throws DataError.
[[nodiscard]] proto::Experiment read_recorded_experiment(const std::string& text);

// Every field that has a default is written out. Read again, it gives the same experiment and the same text.
[[nodiscard]] std::string resolved_text(proto::Experiment experiment);

}  // namespace pesc
