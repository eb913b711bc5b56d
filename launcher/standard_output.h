// The outputs of a verb besides a run directory: standard output, and the file of --out. An error on either
// must be reported.
#pragma once

#include <string>

namespace pesc {

// Ignores SIGXFSZ and SIGPIPE, so that a write beyond the file size limit, or to a pipe without a reader,
// fails with an errno instead of ending the process. Call it first in every process.
void ignore_write_signals();
// Restores the default actions in a child before exec. Async-signal-safe.
void default_write_signals();

// Flushes standard output in the middle of a verb. check_standard_output() reports an error.
void flush_standard_output();
// Flushes standard output at the end of a verb, and reports if any of it could not be written. Returns the
// exit code: `code`, or 74 instead of a success.
[[nodiscard]] int check_standard_output(int code);

// Checks `path`, the argument of --out, before a verb's work. Throws IoError when a file cannot be created
// there, and UsageError when something other than a file is there. Changes nothing.
void check_out_file(const std::string& path);
// The same of a folder, which is made at the end.
void check_out_folder(const std::string& path);

}  // namespace pesc
