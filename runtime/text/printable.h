// Text of a stranger made fit for messages, tables and file names: well-formed UTF-8 without control
// characters.
#pragma once

#include <string>
#include <string_view>

namespace pesc {

// Whether `text` is well-formed UTF-8 without control characters.
[[nodiscard]] bool is_printable(std::string_view text);

// `text` with every byte that is no part of well-formed UTF-8, and every control character, written as \xE9:
// always printable. Texts above 256 bytes are cut to that, with "..." behind.
[[nodiscard]] std::string made_printable(std::string_view text);

}  // namespace pesc
