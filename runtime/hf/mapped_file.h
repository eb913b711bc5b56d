// A read-only private mapping of a regular file, and the rules for which files of a model folder may be
// opened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace pesc {

class MappedFile {
 public:
  // Throws DataError when `path` does not exist or is not a regular file (a directory, FIFO, device or socket
  // is recognised without being opened), IoError when it cannot be read or mapped. Symbolic links are
  // followed here; what names a file of a model folder goes through `path_in_folder` first.
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }
  [[nodiscard]] uint64_t size() const { return size_; }
  // The file's first kFirstBytes bytes (runtime/filesystem/file_kind.h), or all of a shorter one.
  [[nodiscard]] std::string first_bytes() const;
  // Reads [offset, offset + to.size()) by read calls: errors come as IoError rather than as a signal, and the
  // pages do not count as this process's memory.
  void read_at(uint64_t offset, std::span<std::byte> to) const;

 private:
  std::string path_;
  int fd_ = -1;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Where symbolic links of a model folder may lead. Both sides are resolved before they are compared: the
// folder may itself be reached through links.
enum class Links {
  kInside,  // to files inside the folder, and from the Hugging Face cache's models--X/snapshots into its
            // models--X/blobs, wherever the blobs are
  kFollow,  // anywhere (model.follow_links)
};

// The path of file `name` of `folder`, checked before anything is opened: `name` is a plain file name (no
// separator, not "." or ".."), it exists as a regular file, and no symbolic link leads it where `links` does
// not allow. `named_by` says in messages where the name comes from. Throws DataError.
[[nodiscard]] std::string path_in_folder(const std::string& folder, std::string_view name,
                                         const std::string& named_by, Links links = Links::kInside);
// Whether the folder has an entry of that name, of whatever kind.
[[nodiscard]] bool folder_has(const std::string& folder, std::string_view name);

}  // namespace pesc
