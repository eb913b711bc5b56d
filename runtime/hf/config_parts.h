// Parts of the reading of config.json (config_json.cc), each in a file of its own.
#pragma once

#include "model/config.h"
#include "runtime/hf/config_fields.h"

namespace pesc {

// `rope_parameters`, `rope_scaling` and `rope_theta`. Each kind of rope has a closed list of keys: one that
// is not on it and might change the result is refused. Throws DataError naming the dictionary and the key.
[[nodiscard]] RopeConfig read_rope(const ConfigFields& fields, int64_t max_positions);

// Refuses keys that change what the model computes and that nothing here computes, where their value is not
// the one that changes nothing. `model` has its sizes. Throws DataError naming the key, its value and that
// one.
void refuse_unsupported(const ConfigFields& fields, const ModelConfig& model);

}  // namespace pesc
