#include "runtime/metrics/line_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "ops/core/check.h"
#include "runtime/filesystem/filesystem.h"

namespace pesc {
namespace {

// Where the last whole line ends: behind it is what a process was writing when it died. -1: errno says why.
off_t end_of_last_line(int file) {
  char buffer[4096];
  off_t end = ::lseek(file, 0, SEEK_END);
  while (end > 0) {
    const off_t begin = std::max<off_t>(0, end - static_cast<off_t>(sizeof(buffer)));
    const ssize_t n = ::pread(file, buffer, static_cast<size_t>(end - begin), begin);
    if (n < 0) return -1;
    for (ssize_t i = n; i > 0; --i) {
      if (buffer[i - 1] == '\n') return begin + i;
    }
    end = begin;
  }
  return end;
}

}  // namespace

LineFile::LineFile(std::string path, Lock lock) : path_(std::move(path)) {
  file_ = ::open(path_.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (file_ < 0) throw IoError(str_cat(path_, " cannot be written: ", std::strerror(errno)));
  const auto fail = [this](const char* what) {
    const int why = errno;
    ::close(file_);
    throw IoError(str_cat(path_, what, std::strerror(why)));
  };
  if (lock == Lock::kExclusive && ::flock(file_, LOCK_EX) != 0 && !means_unsupported(errno))
    fail(" cannot be locked: ");
  const off_t whole = end_of_last_line(file_);
  if (whole < 0 || ::ftruncate(file_, whole) != 0) fail(" cannot be read: ");
}

LineFile::~LineFile() {
  ::close(file_);
}

bool LineFile::append(const std::string& line) noexcept {
  struct stat before {};
  if (::fstat(file_, &before) != 0) return false;
  size_t done = 0;
  while (done < line.size()) {
    const ssize_t n = ::write(file_, line.data() + done, line.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  if (done == line.size()) return true;
  const int why = errno;
  if (done > 0 && ::ftruncate(file_, before.st_size) != 0) return false;
  errno = why;
  return false;
}

}  // namespace pesc
