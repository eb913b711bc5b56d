// Whether what a rank writes to its error output comes to a terminal, where a line can be written over; and
// what may be written there.
#pragma once

#include <string>
#include <string_view>

namespace pesc {

// True where the error output is a terminal, or a pipe to an mpirun whose own is one and which passes on what
// it gets as it is: not to files (--output-filename) and without a mark on every line (--tag-output). False
// in doubt: logs get no control characters.
[[nodiscard]] bool writes_to_terminal();

// Text of a stranger (a name in a file, a tag, an answer) that drives no terminal: control characters and
// what is no UTF-8 become \x1b. With kLines new lines and tabs stay as they are.
enum class Keep { kNothing, kLines };
[[nodiscard]] std::string terminal_text(std::string_view text, Keep keep = Keep::kNothing);

}  // namespace pesc
