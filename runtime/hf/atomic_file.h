// A file that appears whole or not at all: written under a temporary name in the same folder, synced,
// renamed, and the folder synced.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace pesc {

class AtomicFile {
 public:
  // Throws IoError when the temporary file cannot be made.
  explicit AtomicFile(std::string path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  // Without a commit, removes the temporary file; what stood at `path` before is untouched.
  ~AtomicFile();

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // Puts the file in its place, replacing what stood there. Throws IoError.
  void commit();

 private:
  [[noreturn]] void fail(const char* operation, int error) const;

  std::string path_;
  std::string temporary_;
  int fd_ = -1;
};

}  // namespace pesc
