// The state of a run directory before a start, to restore it when the start is refused.
//
// A start locks and numbers the directory, and its ranks write heartbeats, before it is known whether the
// experiment may use the directory. A start that is refused restores pesc.lock, pesc.launch_id, heartbeats/,
// deaths/ and launches.jsonl, and removes folders that were not there. It touches nothing else.
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
