// Shapes of models without their files, for `pesc plan` and `pesc bench`.
#pragma once

#include <string>

#include "model/config.h"
#include "runtime/hf/mapped_file.h"

namespace pesc {

// `name` is a Hugging Face folder or its config.json, a text file of a Shape message (configs/models), the
// name of one in configs/models ("llama-2-7b"), or one of 7B, 13B, 34B, 70B: Llama-2's and Yi's. Throws
// UsageError with the nearest name, DataError for a bad config.json.
[[nodiscard]] ModelConfig load_shape(const std::string& name, Links links = Links::kInside);

}  // namespace pesc
