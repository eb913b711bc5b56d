// Whether what a rank writes to its error output comes to a terminal, where a line can be written over. (What
// may be written there: runtime/text/printable.h.)
#pragma once

namespace pesc {

// True where the error output is a terminal, or a pipe to an mpirun whose own is one and which passes on what
// it gets as it is: not to files (--output-filename) and without a mark on every line (--tag-output). False
// in doubt: logs get no control characters.
[[nodiscard]] bool writes_to_terminal();

}  // namespace pesc
