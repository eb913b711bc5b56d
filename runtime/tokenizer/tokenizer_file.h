// A tokenizer.json, parsed: the vocabulary and the merges, which are most of it, straight from the text; all
// else as a JSON document.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "runtime/tokenizer/bpe.h"

namespace pesc {

struct TokenizerFile {
  nlohmann::json rest;  // without model.vocab and model.merges
  BpeParts model;       // vocabulary and merges alone
};

// Throws DataError, with the place, for what is no JSON, a repeated key, an id twice or out of bounds, and
// merges that are neither "a b" nor ["a", "b"].
[[nodiscard]] TokenizerFile parse_tokenizer_file(std::string_view text);

}  // namespace pesc
