#include "runtime/hf/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "ops/core/check.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/hf/safetensors.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace fs = std::filesystem;
namespace {

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "not a regular file";
}

void require_regular(const std::string& path, const struct stat& info) {
  if (S_ISREG(info.st_mode)) return;
  throw DataError(str_cat(path, ": is ", kind_of(info.st_mode), "; a regular file is needed here"));
}

bool inside(const fs::path& file, const fs::path& folder) {
  const fs::path relative = file.lexically_relative(folder);
  return !relative.empty() && *relative.begin() != "..";
}

// Whether `path`, a link in the resolved `folder` that leads to `real`, is one of the Hugging Face cache's:
// models--X/snapshots/REVISION/... -> models--X/blobs/HASH. The blobs, or one of them, may be on another
// disk.
bool is_cache_link(const fs::path& path, const fs::path& folder, const fs::path& real) {
  std::error_code error;
  fs::path target = fs::read_symlink(path, error);
  if (error) return false;
  if (target.is_relative()) target = folder / target;
  for (fs::path at = folder; at.has_relative_path(); at = at.parent_path()) {
    if (at.parent_path().filename() != "snapshots") continue;
    const fs::path blobs = fs::canonical(at.parent_path().parent_path() / "blobs", error);
    if (!error && (inside(real, blobs) || fs::canonical(target.parent_path(), error) == blobs)) return true;
  }
  return false;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  struct stat info = {};
  if (::stat(path.c_str(), &info) != 0) {
    const std::string why = str_cat(path, ": ", std::strerror(errno));
    if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP) throw DataError(why);
    throw IoError(why);
  }
  require_regular(path, info);
  // O_NONBLOCK: should the file have become a FIFO since, opening it still returns.
  fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd_ < 0) throw IoError(str_cat(path, ": cannot be opened for reading: ", std::strerror(errno)));
  try {
    if (::fstat(fd_, &info) != 0)
      throw IoError(str_cat(path, ": its size and kind cannot be read: ", std::strerror(errno)));
    require_regular(path, info);
    size_ = static_cast<size_t>(info.st_size);
    if (size_ > 0) {
      void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd_, 0);
      if (data == MAP_FAILED)
        throw IoError(str_cat(path, ": cannot be mapped into memory: ", std::strerror(errno)));
      data_ = static_cast<const std::byte*>(data);
    }
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  if (fd_ >= 0) ::close(fd_);
}

void MappedFile::read_at(uint64_t offset, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t n = ::pread(fd_, to.data(), to.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw IoError(str_cat(path_, ": cannot be read at byte ", offset, ": ", std::strerror(errno)));
    if (n == 0) throw IoError(str_cat(path_, ": ends at byte ", offset, "; it was cut while in use"));
    offset += static_cast<uint64_t>(n);
    to = to.subspan(static_cast<size_t>(n));
  }
}

std::string MappedFile::first_bytes() const {
  std::string bytes(std::min(size_, kFirstBytes), '\0');
  read_at(0, std::as_writable_bytes(std::span(bytes.data(), bytes.size())));
  return bytes;
}

std::string path_in_folder(const std::string& folder, std::string_view name, const std::string& named_by,
                           Links links) {
  const std::string where = str_cat(named_by, ": file name ", in_quotes(name));
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string_view::npos ||
      name.find('\0') != std::string_view::npos) {
    throw DataError(str_cat(where, " is not the plain name of a file inside ", folder));
  }
  const fs::path path = fs::path(folder) / name;
  std::error_code error;
  const fs::path real_folder = fs::canonical(folder, error);
  if (error) throw DataError(str_cat(folder, ": cannot be opened: ", error.message()));
  if (const std::string dead = dead_link(path.string()); !dead.empty()) {
    throw DataError(
        str_cat(where, ": ", path.string(), " ", dead, "; put the file there or download the model again"));
  }
  const fs::path real = fs::canonical(path, error);
  if (error) throw DataError(str_cat(where, ": ", path.string(), " cannot be opened: ", error.message()));
  if (links == Links::kInside && !inside(real, real_folder) &&
      !is_cache_link(real_folder / name, real_folder, real)) {
    throw DataError(
        str_cat(where, " is a symbolic link out of ", folder, ", to ", real.string(),
                "; put the file itself there (cp -L), or let an experiment follow such links with "
                "model.follow_links: true"));
  }
  struct stat info = {};
  if (::stat(real.c_str(), &info) != 0) {
    throw IoError(str_cat(path.string(), ": its kind cannot be read: ", std::strerror(errno)));
  }
  require_regular(path.string(), info);
  return path.string();
}

bool folder_has(const std::string& folder, std::string_view name) {
  struct stat info = {};
  return ::lstat((fs::path(folder) / name).c_str(), &info) == 0;
}

}  // namespace pesc
