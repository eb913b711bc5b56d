#include "runtime/checkpoint/held_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "ops/core/check.h"
#include "runtime/checkpoint/process_identity.h"
#include "runtime/filesystem/filesystem.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr int64_t kMaxHeldBytes = 4096;

std::string contents(const std::string& path) {
  try {
    return posix_filesystem().read_all(path, kMaxHeldBytes);
  } catch (const IoError& error) {
    if (error.number == ENOENT) return {};
    throw;
  }
}

}  // namespace

HeldFile::HeldFile(std::string path, const std::string& what)
    : path_(std::move(path)), owner_(to_string(this_process())) {
  for (int tries = 0; tries < 3; ++tries) {
    const int fd = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd >= 0) {
      const ssize_t n = ::write(fd, owner_.data(), owner_.size());
      const int error = n < 0 ? errno : ENOSPC;
      ::close(fd);
      if (n == static_cast<ssize_t>(owner_.size())) return;
      ::unlink(path_.c_str());
      throw io_error("write", path_, error);
    }
    if (errno != EEXIST) throw io_error("create", path_, errno);
    const std::string text = contents(path_);
    ProcessIdentity owner;
    const bool known = parse(text, owner);
    if (!known || !is_gone(owner)) {
      throw UsageError(
          str_cat(what, " is in use by ",
                  known ? str_cat("pid ", owner.pid, " on host ", printable(owner.host)) : "another process",
                  "; wait for it, stop it, or give another directory. This file system has no locks: if that "
                  "process is gone, remove '",
                  path_, "'"));
    }
    // Of two that see this, one moves the file away; the other must not move away the one's new file.
    const std::string aside = str_cat(path_, ".gone.", ::getpid());
    if (::rename(path_.c_str(), aside.c_str()) != 0) continue;
    if (contents(aside) == text) {
      ::unlink(aside.c_str());
    } else {
      ::rename(aside.c_str(), path_.c_str());
    }
  }
  throw UsageError(str_cat(what, " is being taken by another process; see '", path_, "'"));
}

HeldFile::~HeldFile() {
  try {
    if (contents(path_) == owner_) ::unlink(path_.c_str());
  } catch (const std::exception&) {
    return;  // the next one sees that this process is gone
  }
}

}  // namespace pesc
