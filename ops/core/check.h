// Errors of pesc, and checks of invariants.
//
// A user's mistake and a broken invariant are different types with different exit codes (launcher/README.md).
// A message says what was wrong, where (file, line, tensor, field) and what to do.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace pesc {

enum class ExitCode : int {
  kOk = 0,
  kUsage = 64,      // bad usage or configuration
  kData = 65,       // bad input data: model files, tokenizer, rows, checkpoints
  kInternal = 70,   // a broken invariant: a bug of ours
  kIo = 74,         // input/output failure: disk full, unreadable, unwritable
  kPreempted = 75,  // stopped after saving; start the job again to continue
  kHang = 76,       // a wait exceeded its limit
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& what) : std::runtime_error(what), code_(code) {}
  [[nodiscard]] ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

struct UsageError : Error {
  explicit UsageError(const std::string& what) : Error(ExitCode::kUsage, what) {}
};
struct DataError : Error {
  explicit DataError(const std::string& what) : Error(ExitCode::kData, what) {}
};
struct IoError : Error {
  explicit IoError(const std::string& what, int number_ = 0) : Error(ExitCode::kIo, what), number(number_) {}
  int number;  // errno; 0 where no system call failed (a file that is too short, or of the wrong kind)
};
struct InternalError : Error {
  explicit InternalError(const std::string& what) : Error(ExitCode::kInternal, what) {}
};
struct HangError : Error {
  explicit HangError(const std::string& what) : Error(ExitCode::kHang, what) {}
};

// Concatenates anything printable: str_cat("row ", 3, " of ", path).
template <class... Parts>
[[nodiscard]] std::string str_cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

namespace detail {
template <class... Parts>
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const Parts&... parts) {
  throw InternalError(str_cat(file, ":", line, ": check failed: ", condition, " ", parts...));
}
}  // namespace detail

}  // namespace pesc

// Throws InternalError when `condition` does not hold, in release builds too: PESC_CHECK(a == b, "a is ", a).
#define PESC_CHECK(condition, ...)                                                             \
  do {                                                                                         \
    if (!(condition)) [[unlikely]]                                                             \
      ::pesc::detail::check_failed(__FILE__, __LINE__, #condition __VA_OPT__(, ) __VA_ARGS__); \
  } while (false)
