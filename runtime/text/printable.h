// Text of a stranger (a name in a file, a tag, an answer, a line of a file) made fit for a message, a table
// or a terminal. This is the one place where that is done.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pesc {

// Whether `text` is well-formed UTF-8 without control characters.
[[nodiscard]] bool is_printable(std::string_view text);

inline constexpr size_t kUncut = SIZE_MAX;
// With kLines new lines and tabs stay as they are.
enum class Keep { kNothing, kLines };

// `text` with every byte that is no part of well-formed UTF-8, and every byte of a control character, written
// as \xE9. What comes back is printable (but for what kLines keeps). Above `most` bytes it is cut to those,
// at the border of a character, with "..." behind.
[[nodiscard]] std::string printable(std::string_view text, size_t most = 256, Keep keep = Keep::kNothing);

// The same between single quotes: 'text' or 'text...'.
[[nodiscard]] std::string in_quotes(std::string_view text, size_t most = 120);

}  // namespace pesc
