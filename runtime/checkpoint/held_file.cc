#include "runtime/checkpoint/held_file.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <utility>

#include "ops/core/check.h"
#include "runtime/checkpoint/run_identity.h"
#include "runtime/filesystem/filesystem.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr int64_t kMaxHeldBytes = 4096;

std::string first_word(const std::string& path) {
  std::ifstream in(path);
  std::string word;
  in >> word;
  return word.empty() ? "-" : word;
}

// When the process began, in the kernel's ticks since the machine did: a number given again is told from the
// process that had it before.
std::string start_of(pid_t pid) {
  std::ifstream in(str_cat("/proc/", pid, "/stat"));
  std::string text;
  std::getline(in, text);
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return "-";
  std::istringstream fields(text.substr(name_end + 1));
  std::string field;
  for (int i = 0; i < 20; ++i) fields >> field;  // the 22nd of all
  return field;
}

struct Owner {
  std::string host, boot, pids;  // pids: the namespace in which the number is one
  pid_t pid = 0;
  std::string start;
};

Owner this_process() {
  char host[256] = {};
  if (::gethostname(host, sizeof host - 1) != 0) host[0] = '?';
  char pids[64] = {};
  if (::readlink("/proc/self/ns/pid", pids, sizeof pids - 1) <= 0) pids[0] = '-';
  const pid_t pid = ::getpid();
  return {host, first_word("/proc/sys/kernel/random/boot_id"), pids, pid, start_of(pid)};
}

std::string to_string(const Owner& o) {
  return str_cat("pid ", o.pid, " on host ", o.host, " boot ", o.boot, " pids ", o.pids, " start ", o.start,
                 '\n');
}

bool parse(const std::string& text, Owner& o) {
  std::istringstream in(text);
  std::string pid, on, host, boot, pids, start;
  in >> pid >> o.pid >> on >> host >> o.host >> boot >> o.boot >> pids >> o.pids >> start >> o.start;
  return in && pid == "pid" && on == "on" && host == "host" && boot == "boot" && pids == "pids" &&
         start == "start";
}

bool is_gone(const Owner& o) {
  const Owner here = this_process();
  if (o.host != here.host) return false;
  if (o.boot != here.boot && o.boot != "-" && here.boot != "-") return true;
  if (o.pids != here.pids) return false;
  return (::kill(o.pid, 0) != 0 && errno == ESRCH) || start_of(o.pid) != o.start;
}

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
    Owner owner;
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
