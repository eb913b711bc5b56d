// A rendered chat as tokens: the text is tokenised once, with no token added to it, and what is learned is
// mapped to tokens by their ranges in the text. So the ids are those of apply_chat_template with
// tokenize=True.
//
// Special tokens are found in the template's own text and in the assistant's. Inside what users, systems and
// tools wrote they are plain text, so that nobody ends a turn by writing "<|im_end|>". Added tokens that are
// not special are found everywhere.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/chat/chat_template.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

// Tokens [begin, end).
struct TokenRange {
  size_t begin = 0;
  size_t end = 0;
  bool operator==(const TokenRange&) const = default;
};

struct ChatTokens {
  std::vector<int32_t> ids;
  std::vector<TokenRange> learned;  // in order, disjoint, none of them empty
};

// A token is learned when it stands for any of the learned text, as in transformers' masks: one that joins
// the end of the prompt and the beginning of the answer is learned too. Throws DataError for text that is no
// UTF-8.
[[nodiscard]] ChatTokens tokens_of(const Tokenizer& tokenizer, const RenderedChat& chat);

// The tokens that overlap each range; ranges that meet no token are left out, and ranges that meet in one
// token are joined. `tokens` ascend, as do `texts`.
[[nodiscard]] std::vector<TokenRange> overlapping_tokens(std::span<const TextRange> tokens,
                                                         std::span<const TextRange> texts);

}  // namespace pesc
