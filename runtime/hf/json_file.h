// Small JSON files of a model folder (config.json, the index of shards), read with suspicion: size and
// nesting are bounded, and a repeated key is refused rather than silently decided.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "runtime/hf/mapped_file.h"

namespace pesc {

// A config.json or adapter_config.json has some KB.
inline constexpr uint64_t kMostConfigBytes = 16 << 20;

// Parses `text`; `file_name` is for messages. Throws DataError with the line of the mistake.
[[nodiscard]] nlohmann::json parse_json_document(std::string_view text, const std::string& file_name);

// Reads file `name` of `folder` (see path_in_folder, also for `links`) and parses it. Throws DataError, also
// above `max_bytes`; IoError when reading fails.
[[nodiscard]] nlohmann::json read_json_file(const std::string& folder, const std::string& name,
                                            uint64_t max_bytes, Links links = Links::kInside);

// The same text for all documents of the same values, however they were written: keys in order, no white
// space, a whole number without point and exponent.
[[nodiscard]] std::string canonical_json(const nlohmann::json& document);

}  // namespace pesc
