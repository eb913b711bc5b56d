// The file system behind a small interface, so that a test can lose unsynced data, fill the disk or return
// errors.
//
// Paths are ordinary POSIX paths. Every failure is an IoError that names the operation, the path and the
// reason. What survives a power cut: a file's bytes once `sync` returned, and a directory's entries (created,
// renamed, removed) once `sync_directory` of that directory returned; nothing else is promised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ops/core/check.h"

namespace pesc {

// A new file, written from its start. The destructor closes and ignores errors; close() reports them.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  virtual void append(std::span<const std::byte> bytes) = 0;
  virtual void sync() = 0;
  virtual void close() = 0;
};

class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  [[nodiscard]] virtual int64_t size() const = 0;
  // Fills all of `out` from `offset`; a file that ends before is an IoError.
  virtual void read(int64_t offset, std::span<std::byte> out) const = 0;
};

enum class FileKind { kNone, kFile, kDirectory, kOther };  // kOther: a symbolic link, a FIFO, ...

class FileSystem {
 public:
  virtual ~FileSystem() = default;

  // One level; a directory that is already there is fine.
  virtual void create_directory(const std::string& path) = 0;
  // An existing file is emptied.
  [[nodiscard]] virtual std::unique_ptr<WritableFile> create_file(const std::string& path) = 0;
  // Regular files only: a symbolic link or a FIFO is refused, and nothing is waited for.
  [[nodiscard]] virtual std::unique_ptr<ReadableFile> open(const std::string& path) = 0;
  [[nodiscard]] virtual FileKind kind(const std::string& path) = 0;
  // Names in a directory, sorted, without "." and "..".
  [[nodiscard]] virtual std::vector<std::string> list(const std::string& path) = 0;
  // Atomic; a non-empty directory at `to` is never replaced.
  virtual void rename(const std::string& from, const std::string& to) = 0;
  // A file, a link or an empty directory.
  virtual void remove(const std::string& path) = 0;
  virtual void sync_directory(const std::string& path) = 0;

  [[nodiscard]] bool exists(const std::string& path) { return kind(path) != FileKind::kNone; }
  [[nodiscard]] int64_t size(const std::string& path) { return open(path)->size(); }
  // The whole file; an IoError when it has more than `max_bytes`.
  [[nodiscard]] std::string read_all(const std::string& path, int64_t max_bytes);
  // A directory with all that is in it; links are removed, not followed. Nothing there is fine.
  void remove_all(const std::string& path);
};

// The real one; usable from any thread. Where the file system below cannot sync a directory (or a file) at
// all, which is not the same as failing to, it goes on without and says so once.
[[nodiscard]] FileSystem& posix_filesystem();

// The same with another fsync(2), for tests: it returns -1 and sets errno where it fails.
[[nodiscard]] std::unique_ptr<FileSystem> posix_filesystem_with(std::function<int(int)> fsync);

// Whether this errno of fsync(2), flock(2) and their like means that the file system does not have the
// operation; the operation has then not failed.
[[nodiscard]] bool means_unsupported(int error_number);

[[nodiscard]] std::string join_path(std::string_view directory, std::string_view name);

// "cannot sync 'a/b': No space left on device".
[[nodiscard]] IoError io_error(std::string_view operation, std::string_view path, int error_number);

}  // namespace pesc
