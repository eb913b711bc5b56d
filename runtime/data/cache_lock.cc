#include "runtime/data/cache_lock.h"

#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>

#include "ops/core/check.h"
#include "runtime/filesystem/filesystem.h"

namespace pesc {
namespace {

constexpr const char* kTokensLock = "pesc.tokens.lock";

bool is_held(int error) {
  return error == EWOULDBLOCK || error == EAGAIN;
}

}  // namespace

std::unique_ptr<CacheLock> CacheLock::try_acquire(const std::string& directory, std::string& why,
                                                  const LockCalls& calls) {
  const CacheLockFile file{join_path(directory, kTokensLock), str_cat("cache_dir '", directory, "'")};
  return try_acquire(file, why, calls);
}

std::unique_ptr<CacheLock> CacheLock::try_acquire(const CacheLockFile& file, std::string& why,
                                                  const LockCalls& calls) {
  const int fd = ::open(file.path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd < 0) throw io_error("open", file.path, errno);
  std::unique_ptr<CacheLock> lock(new CacheLock(fd));
  int error = calls.flock(fd);
  if (error != 0 && !is_held(error)) error = calls.fcntl(fd);
  if (is_held(error)) {
    why = lock->read(fd);
    return nullptr;
  }
  if (error != 0) {
    try {
      lock->held_ = std::make_unique<HeldFile>(file.path + ".held", file.what);
    } catch (const UsageError& held) {
      why = held.what();
      return nullptr;
    }
  }
  lock->before_ = lock->read(fd);
  return lock;
}

CacheLock::~CacheLock() {
  held_.reset();
  ::close(fd_);
}

std::string CacheLock::read(int fd) noexcept {
  std::string text(kMostBytes, '\0');
  const ssize_t n = ::pread(fd, text.data(), text.size(), 0);
  text.resize(n > 0 ? static_cast<size_t>(n) : 0);
  return text;
}

std::string CacheLock::text(const std::string& directory) noexcept {
  const int fd = ::open(join_path(directory, kTokensLock).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return {};
  std::string text = read(fd);
  ::close(fd);
  return text;
}

void CacheLock::write(const std::string& text) noexcept {
  const size_t size = text.size() < kMostBytes ? text.size() : kMostBytes;
  // A reader between the two calls sees a text that is longer than it should be, or shorter.
  if (::pwrite(fd_, text.data(), size, 0) == static_cast<ssize_t>(size))
    static_cast<void>(::ftruncate(fd_, static_cast<off_t>(size)) == 0);
}

std::string this_process_name() {
  char host[256] = {};
  if (::gethostname(host, sizeof host - 1) != 0) host[0] = '?';
  return str_cat("pid ", ::getpid(), " on host ", host);
}

}  // namespace pesc
