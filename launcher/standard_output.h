// What a verb writes besides a run directory: standard output, and the file of --out. Neither may be lost
// without a word.
#pragma once

#include <string>

namespace pesc {

// From here on a write beyond the limit on file sizes, or into a pipe that nobody reads, fails with an errno
// instead of ending the process by a signal. First thing in every process.
void ignore_write_signals();
// In a child, before another program: as it expects them. Async-signal-safe.
void default_write_signals();

// In the middle of a verb: flushes standard output. Why it could not be is told at the end.
void flush_standard_output();
// At the end of a verb: flushes standard output, and says so where any of it could not be written. Returns
// the exit code: `code`, or 74 where that would be a success.
[[nodiscard]] int check_standard_output(int code);

// Before a verb's work: throws IoError unless a file can be made at `path`, the argument of --out, or
// UsageError where something else than a file is there. Leaves what is there untouched.
void check_out_file(const std::string& path);
// The same of a folder, which is made at the end.
void check_out_folder(const std::string& path);

}  // namespace pesc
