// POSIX: every call is retried on EINTR, short reads and writes are continued, and an error of close() counts
// (a network file system reports a full disk there).
#include "runtime/filesystem/filesystem.h"

#include <dirent.h>
#include <fcntl.h>
#include <glog/logging.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace pesc {
namespace {

template <class Call>
auto retried(Call call) {
  decltype(call()) result;
  do result = call();
  while (result == -1 && errno == EINTR);
  return result;
}

class OwnedDescriptor {
 public:
  explicit OwnedDescriptor(int fd) : fd_(fd) {}
  ~OwnedDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  OwnedDescriptor(const OwnedDescriptor&) = delete;
  OwnedDescriptor& operator=(const OwnedDescriptor&) = delete;
  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// fsync(2), and whether its absence has been said.
class Syncing {
 public:
  explicit Syncing(std::function<int(int)> fsync) : fsync_(std::move(fsync)) {}

  void file(int fd, const std::string& path) { sync(fd, path, "sync", false); }
  void directory(int fd, const std::string& path) { sync(fd, path, "sync directory", true); }

 private:
  void sync(int fd, const std::string& path, const char* operation, bool is_directory) {
    if (retried([&] { return fsync_(fd); }) == 0) return;
    const int error = errno;
    // Some say EBADF or EISDIR of a directory, whose descriptor is good: it has just been opened.
    const bool unsupported =
        means_unsupported(error) || (is_directory && (error == EBADF || error == EISDIR));
    if (!unsupported) throw io_error(operation, path, error);
    if (told_.exchange(true)) return;
    LOG(WARNING) << "the file system of '" << path << "' cannot " << operation << " (" << std::strerror(error)
                 << "): what has been saved there may not survive a power failure";
  }

  std::function<int(int)> fsync_;
  std::atomic<bool> told_ = false;
};

class PosixWritableFile : public WritableFile {
 public:
  PosixWritableFile(int fd, std::string path, Syncing& syncing)
      : fd_(fd), path_(std::move(path)), syncing_(syncing) {}

  void append(std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t n = retried([&] { return ::write(fd_.get(), bytes.data(), bytes.size()); });
      if (n < 0) throw io_error("write", path_, errno);
      // A write of zero bytes is no error by POSIX, but would loop for ever.
      if (n == 0) throw io_error("write", path_, ENOSPC);
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
  }
  void sync() override { syncing_.file(fd_.get(), path_); }
  void close() override {
    // Not retried: on Linux the descriptor is gone even when close() was interrupted.
    const int fd = fd_.release();
    if (fd >= 0 && ::close(fd) != 0 && errno != EINTR) throw io_error("close", path_, errno);
  }

 private:
  OwnedDescriptor fd_;
  std::string path_;
  Syncing& syncing_;
};

class PosixReadableFile : public ReadableFile {
 public:
  PosixReadableFile(int fd, int64_t size, std::string path) : fd_(fd), size_(size), path_(std::move(path)) {}

  [[nodiscard]] int64_t size() const override { return size_; }
  void read(int64_t offset, std::span<std::byte> out) const override {
    while (!out.empty()) {
      const ssize_t n = retried([&] { return ::pread(fd_.get(), out.data(), out.size(), offset); });
      if (n < 0) throw io_error("read", path_, errno);
      if (n == 0) throw IoError(str_cat("cannot read '", path_, "': it ends at byte ", offset));
      out = out.subspan(static_cast<size_t>(n));
      offset += n;
    }
  }

 private:
  OwnedDescriptor fd_;
  int64_t size_;
  std::string path_;
};

class PosixFileSystem : public FileSystem {
 public:
  explicit PosixFileSystem(std::function<int(int)> fsync) : syncing_(std::move(fsync)) {}

  void create_directory(const std::string& path) override {
    if (::mkdir(path.c_str(), 0777) == 0) return;
    const int error = errno;
    struct stat info {};
    if (error == EEXIST && ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) return;
    throw io_error("create directory", path, error);
  }

  std::unique_ptr<WritableFile> create_file(const std::string& path) override {
    const int fd = retried(
        [&] { return ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666); });
    if (fd < 0) throw io_error("create", path, errno);
    return std::make_unique<PosixWritableFile>(fd, path, syncing_);
  }

  std::unique_ptr<ReadableFile> open(const std::string& path) override {
    // O_NONBLOCK: opening a FIFO that nobody writes to must not wait.
    OwnedDescriptor fd(
        retried([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK); }));
    if (fd.get() < 0) {
      if (errno == ELOOP) throw IoError(str_cat("cannot open '", path, "': it is a symbolic link"));
      throw io_error("open", path, errno);
    }
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) throw io_error("stat", path, errno);
    if (!S_ISREG(info.st_mode)) throw IoError(str_cat("cannot open '", path, "': it is not a regular file"));
    return std::make_unique<PosixReadableFile>(fd.release(), info.st_size, path);
  }

  FileKind kind(const std::string& path) override {
    struct stat info {};
    if (::lstat(path.c_str(), &info) != 0) {
      if (errno == ENOENT || errno == ENOTDIR) return FileKind::kNone;
      throw io_error("stat", path, errno);
    }
    if (S_ISREG(info.st_mode)) return FileKind::kFile;
    return S_ISDIR(info.st_mode) ? FileKind::kDirectory : FileKind::kOther;
  }

  std::vector<std::string> list(const std::string& path) override {
    const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
    if (!dir) throw io_error("list", path, errno);
    std::vector<std::string> names;
    for (;;) {
      errno = 0;
      const dirent* entry = ::readdir(dir.get());
      if (entry == nullptr) break;
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    if (errno != 0) throw io_error("list", path, errno);
    std::sort(names.begin(), names.end());
    return names;
  }

  void rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0)
      throw io_error(str_cat("rename to '", to, "' from"), from, errno);
  }

  void remove(const std::string& path) override {
    if (std::remove(path.c_str()) != 0) throw io_error("remove", path, errno);
  }

  void sync_directory(const std::string& path) override {
    const OwnedDescriptor fd(
        retried([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
    if (fd.get() < 0) throw io_error("open directory", path, errno);
    syncing_.directory(fd.get(), path);
  }

 private:
  Syncing syncing_;
};

}  // namespace

std::string FileSystem::read_all(const std::string& path, int64_t max_bytes) {
  const auto file = open(path);
  if (file->size() > max_bytes)
    throw IoError(
        str_cat("cannot read '", path, "': it has ", file->size(), " bytes, more than ", max_bytes));
  std::string text(static_cast<size_t>(file->size()), '\0');
  file->read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

void FileSystem::remove_all(const std::string& path) {
  const FileKind what = kind(path);
  if (what == FileKind::kNone) return;
  if (what == FileKind::kDirectory)
    for (const std::string& name : list(path)) remove_all(join_path(path, name));
  remove(path);
}

FileSystem& posix_filesystem() {
  static PosixFileSystem instance(::fsync);
  return instance;
}

std::unique_ptr<FileSystem> posix_filesystem_with(std::function<int(int)> fsync) {
  return std::make_unique<PosixFileSystem>(std::move(fsync));
}

bool means_unsupported(int error_number) {
  constexpr int kNotSupportedInKernel = 524;  // ENOTSUPP, which some file systems let through
  return error_number == ENOSYS || error_number == EINVAL || error_number == EOPNOTSUPP ||
         error_number == ENOTSUP || error_number == kNotSupportedInKernel;
}

std::string join_path(std::string_view directory, std::string_view name) {
  std::string path(directory);
  if (!path.empty() && path.back() != '/') path += '/';
  return path.append(name);
}

IoError io_error(std::string_view operation, std::string_view path, int error_number) {
  return IoError(str_cat("cannot ", operation, " '", path, "': ", std::strerror(error_number)), error_number);
}

}  // namespace pesc
