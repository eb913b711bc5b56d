// The characters of a question that the tokenizer has no piece for: the model sees "unknown" in their place.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/data/rows.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

// Of the row's texts that a prompt is made of (system, questions, and the answers before the last question),
// those characters that the tokenizer does not know, each once, with the place of the first of its kind:
// "'\u2603' (character 7 of the prompt)"; empty where it knows all. Characters are counted from 1. Texts are
// looked at up to so many tokens, `limit`.
[[nodiscard]] std::string unknown_characters(const Tokenizer& tokenizer, const Row& row, int64_t limit);

}  // namespace pesc
