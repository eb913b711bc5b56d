// A lock for file systems without locks: a file that its owner makes, alone, and removes at its end.
//
// A process that is killed leaves the file. Whoever comes next on the same host sees that the owner is gone
// and takes over; on another host it cannot know, and the refusal says which file to remove.
#pragma once

#include <string>

namespace pesc {

class HeldFile {
 public:
  // Throws UsageError, naming the owner and the file, where another process holds it or may hold it; IoError.
  // `what` is held by it: "run directory 'runs/a'".
  HeldFile(std::string path, const std::string& what);
  // Removes the file where it is still this process's.
  ~HeldFile();
  HeldFile(const HeldFile&) = delete;
  HeldFile& operator=(const HeldFile&) = delete;

 private:
  std::string path_;
  std::string owner_;  // the file's text
};

}  // namespace pesc
