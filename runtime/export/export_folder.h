// A folder that appears whole or not at all. Its files are written and synced in a folder TARGET.tmp.PID beside the
// target, which commit() renames. What a process that was killed leaves has that other name, and is never taken for
// the target. The folder says in a file whose it is: the next export to the target removes it where that process is known to
// have ended, and else names it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/filesystem/filesystem.h"
#include "runtime/hf/safetensors_write.h"

namespace pesc {

// Throws UsageError where there is anything at `target` already, or it names no folder.
void check_absent(FileSystem& files, const std::string& target);

class ExportFolder {
 public:
  // Makes the temporary folder, and the folders above it that are missing. Throws UsageError where there is
  // anything at `target` already, or at the temporary folder's name what is not known to be left; IoError.
  ExportFolder(FileSystem& files, const std::string& target);
  ExportFolder(const ExportFolder&) = delete;
  ExportFolder& operator=(const ExportFolder&) = delete;
  // Without a commit, removes the temporary folder and the folders that were made for it.
  ~ExportFolder();

  // A folder inside of it. Names of files may then begin with "NAME/".
  void add_folder(const std::string& name);
  // Writes and syncs one file: `produce` gives its bytes. Throws IoError.
  void add_file(const std::string& name, const std::function<void(const ByteSink&)>& produce);
  void add_file(const std::string& name, std::string_view text);
  // Names of the files so far, as they were given.
  [[nodiscard]] const std::vector<std::string>& names() const { return names_; }
  [[nodiscard]] int64_t bytes() const { return bytes_; }

  // Puts the folder in its place. Throws UsageError where something has come to stand there.
  void commit();

 private:
  void make_parents(const std::string& parent);
  void clean_up() noexcept;

  FileSystem& files_;
  std::string target_, parent_, temporary_;
  std::vector<std::string> made_;     // folders above the target, the highest first
  std::vector<std::string> folders_;  // inside of it
  std::vector<std::string> names_;
  int64_t bytes_ = 0;
  bool made_temporary_ = false, committed_ = false;
};

// Writes `entries` in their order into model.safetensors, or, where they have more than `shard_bytes`, into
// model-00001-of-0000N.safetensors and so on with model.safetensors.index.json. A tensor is never cut.
inline constexpr int64_t kShardBytes = 5'000'000'000;
void add_weight_files(ExportFolder& folder, std::vector<SafetensorsWriteEntry> entries,
                      int64_t shard_bytes = kShardBytes);

}  // namespace pesc
