#include "runtime/checkpoint/run_lock.h"

#include <fcntl.h>
#include <glog/logging.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

#include "ops/core/check.h"
#include "runtime/checkpoint/store.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/filesystem/filesystem.h"

namespace pesc {
namespace {

// A directory stands after a power cut once the one above it is synced; so all that have to be made. One that
// may not be read cannot be opened to sync it.
void make_directories(const std::string& run_dir) {
  namespace fs = std::filesystem;
  if (const std::string dead = dead_link(run_dir); !dead.empty())
    throw UsageError(
        str_cat("run_dir '", run_dir, "' ", dead, "; remove the link or mend it, or give another run_dir"));
  std::error_code error;
  std::vector<fs::path> parents;
  for (fs::path p = fs::absolute(run_dir); !fs::exists(p, error); p = p.parent_path())
    parents.push_back(p.parent_path());
  fs::create_directories(run_dir, error);
  if (error) throw io_error("create run directory", run_dir, error.value());
  for (const fs::path& p : parents) {
    if (::access(p.c_str(), R_OK) == 0) posix_filesystem().sync_directory(p);
  }
}

// What a pesc with the old field names counted its launches in; one with today's names writes kLaunchIdFile.
constexpr const char* kOldLaunchFile = "pesc.generation";

void refuse_an_old_run(const std::string& run_dir, const std::vector<std::string>& names) {
  const auto has = [&](const char* name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (has(kOldLaunchFile) && !has(kLaunchIdFile)) {
    throw UsageError(str_cat("run directory '", run_dir, "' is of a pesc with the old field names (it has '",
                             kOldLaunchFile, "' and no '", kLaunchIdFile,
                             "'), whose runs do not resume; use the pesc that wrote it, or another run_dir"));
  }
}

void refuse_a_strangers_directory(const std::string& run_dir) {
  const auto names = posix_filesystem().list(run_dir);
  refuse_an_old_run(run_dir, names);
  const bool ours = std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return name == kLockFile || name == kLaunchIdFile || step_of_directory(name).has_value();
  });
  if (!names.empty() && !ours)
    throw UsageError(str_cat("'", run_dir, "' is not a run directory of ours: it is not empty (it has '",
                             names[0], "', for one) and holds no run; give an empty or a new directory"));
}

// "pid 4711 on host node3"; the holder may not have written it yet.
std::string holder(int fd) {
  char text[256];
  const ssize_t n = ::pread(fd, text, sizeof text, 0);
  std::string name(text, n > 0 ? static_cast<size_t>(n) : 0);
  name.erase(std::find_if(name.begin(), name.end(), [](char c) { return c < 0x20; }), name.end());
  return name.empty() ? "another process" : name;
}

void write_file(int fd, const std::string& path, const std::string& text) {
  if (::ftruncate(fd, 0) != 0) throw io_error("truncate", path, errno);
  const ssize_t n = ::pwrite(fd, text.data(), text.size(), 0);
  if (n != static_cast<ssize_t>(text.size())) throw io_error("write", path, n < 0 ? errno : ENOSPC);
}

void write_launch_id(const std::string& run_dir, uint64_t launch_id) {
  FileSystem& files = posix_filesystem();
  const std::string path = join_path(run_dir, kLaunchIdFile);
  const std::string text = str_cat(launch_id, '\n');
  const auto file = files.create_file(path + ".new");
  file->append(std::as_bytes(std::span(text)));
  file->sync();
  file->close();
  files.rename(path + ".new", path);
  files.sync_directory(run_dir);
}

}  // namespace

LockCalls system_lock_calls() {
  return {[](int fd) { return ::flock(fd, LOCK_EX | LOCK_NB) == 0 ? 0 : errno; },
          [](int fd) {
            // Of the open file, as flock's: not gone when the process closes another descriptor of the file.
            struct flock whole {};
            whole.l_type = F_WRLCK;
            whole.l_whence = SEEK_SET;
            if (::fcntl(fd, F_OFD_SETLK, &whole) == 0) return 0;
            return errno == EACCES ? EWOULDBLOCK : errno;
          }};
}

// Only a lock that another process holds refuses the directory; whatever else a call says, it cannot lock
// here.
void RunLock::lock(const std::string& path, const LockCalls& calls) {
  const auto held = [](int error) { return error == EWOULDBLOCK || error == EAGAIN; };
  const int first = calls.flock(fd_);
  const int second = first == 0 || held(first) ? first : calls.fcntl(fd_);
  if (second != 0 && !held(second)) {
    held_ = std::make_unique<HeldFile>(path + ".held", str_cat("run directory '", run_dir_, "'"));
  } else if (second != 0) {
    throw UsageError(str_cat("run directory '", run_dir_, "' is in use by ", holder(fd_),
                             "; wait for it, stop it, or give another directory"));
  }
  if (first == 0) return;
  LOG(WARNING) << "run_dir '" << run_dir_ << "': its file system has no flock (" << std::strerror(first)
               << "), so the directory is locked by "
               << (held_ == nullptr ? std::string("fcntl") : str_cat("the file '", path, ".held'"))
               << (held_ == nullptr ? ""
                                    : ". Start it on one host at a time, or use a run_dir on a file system "
                                      "with locks");
}

RunLock RunLock::acquire(const std::string& run_dir, const LockCalls& calls) {
  const std::string path = join_path(run_dir, kLockFile);
  for (int tries = 0; tries < 10; ++tries) {
    auto before = std::make_unique<FolderBefore>(run_dir);
    make_directories(run_dir);
    refuse_a_strangers_directory(run_dir);
    // Not inherited by the ranks: the lock goes when its holder dies, whoever else lives on.
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) throw io_error("open", path, errno);
    RunLock lock(run_dir, fd);
    lock.lock(path, calls);
    if (!lock.is_in_place()) continue;  // a start that was refused has just removed it
    lock.before_ = std::move(before);
    try {
      lock.before_->read();
      const uint64_t launch_id = current_launch_id(run_dir);
      char host[256] = {};
      if (::gethostname(host, sizeof host - 1) != 0) host[0] = '?';
      write_file(fd, path, str_cat("pid ", ::getpid(), " on host ", host, '\n'));
      lock.launch_id_ = launch_id;
      lock.next_launch_id();
      lock.launch_id_at_start_ = lock.launch_id_;
    } catch (const Error&) {
      static_cast<void>(lock.before_->put_back());
      throw;
    }
    return lock;
  }
  throw UsageError(str_cat("run directory '", run_dir, "' is being taken by another process; try again"));
}

std::vector<std::string> RunLock::take_back() noexcept {
  if (before_ == nullptr || !still_ours()) return {};
  return std::exchange(before_, nullptr)->put_back();
}

void RunLock::next_launch_id() {
  launch_id_ = current_launch_id(run_dir_) + 1;
  write_launch_id(run_dir_, launch_id_);
}

uint64_t RunLock::current_launch_id(const std::string& run_dir) {
  FileSystem& files = posix_filesystem();
  const std::string path = join_path(run_dir, kLaunchIdFile);
  if (!files.exists(path)) return 0;
  std::string text = files.read_all(path, 64);
  if (!text.empty() && text.back() == '\n') text.pop_back();
  if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos)
    throw DataError(str_cat("'", path,
                            "' is damaged: it should hold one number; write into it one that is larger than "
                            "the launches so far"));
  return std::stoull(text);
}

RunLock::RunLock(RunLock&& other) noexcept
    : run_dir_(std::move(other.run_dir_)),
      fd_(std::exchange(other.fd_, -1)),
      held_(std::move(other.held_)),
      before_(std::move(other.before_)),
      launch_id_(other.launch_id_),
      launch_id_at_start_(other.launch_id_at_start_) {}

RunLock::~RunLock() {
  if (fd_ >= 0) ::close(fd_);
}

bool RunLock::is_in_place() const noexcept {
  struct stat held {
  }, named{};
  if (fd_ < 0 || ::fstat(fd_, &held) != 0 || ::stat(join_path(run_dir_, kLockFile).c_str(), &named) != 0)
    return false;
  return held.st_ino == named.st_ino && held.st_dev == named.st_dev;
}

bool RunLock::still_ours() const noexcept {
  try {
    return is_in_place() && current_launch_id(run_dir_) == launch_id_;
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace pesc
