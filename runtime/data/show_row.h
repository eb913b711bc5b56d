// A row's tokens for people: decoded, control tokens by their names and marked, so that the same text typed by a user
// looks different, the learned part marked.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "runtime/chat/chat_tokens.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

enum class Marks {
  kColour,    // for a terminal: what is learned is green, a control token in reverse video
  kBrackets,  // for a file: what is learned stands between >>> and <<<, a control token between ⟦ and ⟧
};

// "512 tokens, 80 of them learned:", and the text from the next line on. Control characters are written as
// \x1B, but for new lines and tabs, and the brackets of control tokens as \u27E6 and \u27E7.
[[nodiscard]] std::string shown_row(const Tokenizer& tokenizer, std::span<const int32_t> ids,
                                    std::span<const TokenRange> learned, Marks marks);

}  // namespace pesc
