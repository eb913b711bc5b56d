#include "launcher/standard_output.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "ops/core/check.h"
#include "runtime/hf/atomic_file.h"

namespace pesc {
namespace fs = std::filesystem;

namespace {

int first_error = 0;  // errno of the first flush that failed; stdio keeps only that there was one

}  // namespace

void flush_standard_output() {
  if (std::fflush(stdout) != 0 && first_error == 0) first_error = errno;
}

void ignore_write_signals() {
  ::signal(SIGXFSZ, SIG_IGN);
  ::signal(SIGPIPE, SIG_IGN);
}

void default_write_signals() {
  ::signal(SIGXFSZ, SIG_DFL);
  ::signal(SIGPIPE, SIG_DFL);
}

int check_standard_output(int code) {
  flush_standard_output();
  if (std::ferror(stdout) == 0) return code;
  const std::string why = first_error != 0 ? std::strerror(first_error) : "an earlier write failed";
  std::fprintf(stderr,
               "pesc: standard output cannot be written: %s; what was printed is lost or incomplete\n",
               why.c_str());
  // 1 is a result too: that two checkpoints differ.
  return code == 0 || code == 1 ? static_cast<int>(ExitCode::kIo) : code;
}

void check_out_file(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    throw UsageError(str_cat("--out ", path, " is ",
                             fs::is_directory(status) ? "a folder" : "no regular file",
                             "; name a file to be written"));
  }
  try {
    const AtomicFile probe(path);  // its temporary file, which goes again
  } catch (const IoError& e) {
    throw IoError(str_cat("--out ", e.what(), "; name a file in a folder that is there and can be written"));
  }
}

void check_out_folder(const std::string& path) {
  std::error_code error;
  fs::path there = fs::absolute(path);
  while (!fs::exists(there, error) && there.has_relative_path()) there = there.parent_path();
  if (!fs::is_directory(there, error))
    throw UsageError(str_cat("--out ", path, ": ", there.string(), " is no folder"));
  if (::access(there.c_str(), W_OK | X_OK) != 0)
    throw IoError(
        str_cat("--out ", path, ": ", there.string(), " cannot be written: ", std::strerror(errno)));
}

}  // namespace pesc
