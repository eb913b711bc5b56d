// What may be written where: lines that are written over, and colours. This is the one place that decides it.
// (Which text may be written: runtime/text/printable.h.)
#pragma once

namespace pesc {

// True where the error output is a terminal, or a pipe to an mpirun whose own is one and which passes on what
// it gets as it is: not to files (--output-filename) and without a mark on every line (--tag-output). False
// in doubt, and where TERM is "dumb": logs get no control characters.
[[nodiscard]] bool writes_to_terminal();

// Whether text written to this descriptor may have colours: it is a terminal itself, TERM is not "dumb", and
// NO_COLOR is not set, or empty (https://no-color.org).
[[nodiscard]] bool uses_colour(int descriptor);

}  // namespace pesc
