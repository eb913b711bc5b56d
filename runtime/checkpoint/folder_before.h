// What a start finds in a run directory, and how it leaves it again when it is refused.
//
// Before it is sure that a start may have the directory, it has locked and numbered it, and ranks have left
// signs of life. A start that is refused puts these back as they were: pesc.lock, pesc.launch_id,
// heartbeats/, deaths/ and launches.jsonl, and folders that were not there. It touches nothing else.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace pesc {

inline constexpr const char* kLockFile = "pesc.lock";
inline constexpr const char* kLaunchIdFile = "pesc.launch_id";

class FolderBefore {
 public:
  // Before the directory is made and the lock's file opened.
  explicit FolderBefore(const std::string& run_dir);
  // Under the lock, before anything is written.
  void read();
  // Under the lock, when the ranks have ended. Lines of what could not be put back.
  [[nodiscard]] std::vector<std::string> put_back() const noexcept;

 private:
  struct File {
    std::string bytes;
    std::filesystem::file_time_type time;
  };
  // Removes what was not there and writes what is another now.
  void put_back_file(const std::filesystem::path& name) const;
  void read_file(const std::filesystem::path& name);

  std::filesystem::path run_dir_;
  std::vector<std::filesystem::path> missing_;   // folders, the deepest first
  std::map<std::filesystem::path, File> files_;  // by name in the run directory
  std::optional<std::uintmax_t> launches_;       // bytes of launches.jsonl
  std::optional<std::filesystem::file_time_type> launches_time_;
  bool had_lock_ = false;
};

}  // namespace pesc
