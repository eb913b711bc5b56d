// A file of whole lines to which processes append: metrics.jsonl and evaluations.jsonl.
#pragma once

#include <string>

namespace pesc {

// What a process was writing when it died (the bytes behind the last newline) is cut off when the file is
// opened, and a line is written whole or, as far as the file system allows, not at all.
class LineFile {
 public:
  enum class Lock { kNone, kExclusive };  // kExclusive: waits for the file's lock (flock), and holds it
  // Makes the file where there is none. Throws IoError when it cannot be opened, locked or read.
  LineFile(std::string path, Lock lock);
  ~LineFile();
  LineFile(const LineFile&) = delete;
  LineFile& operator=(const LineFile&) = delete;

  // Appends `line`, which ends with a newline. False: it was not written, and errno says why.
  [[nodiscard]] bool append(const std::string& line) noexcept;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
  int file_ = -1;
};

}  // namespace pesc
