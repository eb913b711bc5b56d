// A folder for runs: whether it can be written, its room, whether its locks keep others out, its clock.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "launcher/doctor/machine.h"
#include "launcher/doctor/probe.h"
#include "ops/core/check.h"
#include "runtime/checkpoint/run_lock.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using nlohmann::json;

constexpr auto kFolderWithin = std::chrono::seconds(10);

// The magic numbers of statfs(2).
std::string filesystem_name(uint64_t type) {
  struct Name {
    uint64_t type;
    const char* name;
  };
  constexpr std::array kNames{
      Name{0xEF53, "ext4"},       Name{0x58465342, "xfs"},     Name{0x9123683E, "btrfs"},
      Name{0x01021994, "tmpfs"},  Name{0x794C7630, "overlay"}, Name{0x6969, "nfs"},
      Name{0x0BD00BD0, "lustre"}, Name{0x47504653, "gpfs"},    Name{0x19830326, "beegfs"},
      Name{0x00C36400, "ceph"},   Name{0x65735546, "fuse"},    Name{0x2FC12FC1, "zfs"},
      Name{0xFF534D42, "cifs"},   Name{0x01021997, "9p"},      Name{0xFE534D42, "smb2"}};
  const auto* found = std::ranges::find(kNames, type, &Name::type);
  if (found != kNames.end()) return found->name;
  char text[32];
  std::snprintf(text, sizeof(text), "type 0x%llx", static_cast<unsigned long long>(type));
  return text;
}

[[noreturn]] void fail(const std::string& what) {
  throw IoError(str_cat(what, ": ", std::strerror(errno)));
}

// A file of ours in the folder, which goes again.
class TrialFile {
 public:
  explicit TrialFile(const std::string& folder) : path_(folder + "/pesc-doctor-XXXXXX") {
    first_ = ::mkostemp(path_.data(), O_CLOEXEC);
    if (first_ < 0) fail("it cannot be written");
    second_ = ::open(path_.c_str(), O_RDWR | O_CLOEXEC);
  }
  ~TrialFile() {
    ::close(first_);
    if (second_ >= 0) ::close(second_);
    ::unlink(path_.c_str());
  }
  TrialFile(const TrialFile&) = delete;
  TrialFile& operator=(const TrialFile&) = delete;

  // Whether the lock can be had, and keeps a second owner out.
  [[nodiscard]] bool excludes(const std::function<int(int)>& lock) const {
    return second_ >= 0 && lock(first_) == 0 && lock(second_) != 0;
  }
  // Seconds to write and sync 1 MiB.
  [[nodiscard]] double sync_seconds() const {
    const std::vector<char> block(1 << 20, 'p');
    const auto begin = std::chrono::steady_clock::now();
    if (::write(first_, block.data(), block.size()) != std::ssize(block)) fail("1 MiB cannot be written");
    if (::fsync(first_) != 0) fail("it cannot be synced");
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  // Of the file's time against ours, seconds.
  [[nodiscard]] double clock_ahead() const {
    struct timespec now {};
    ::clock_gettime(CLOCK_REALTIME, &now);
    struct stat info {};
    if (::fstat(first_, &info) != 0) fail("its files cannot be looked at");
    return static_cast<double>(info.st_mtim.tv_sec - now.tv_sec) +
           1e-9 * static_cast<double>(info.st_mtim.tv_nsec - now.tv_nsec);
  }

 private:
  std::string path_;
  int first_ = -1, second_ = -1;
};

std::string ask_folder(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) fail("it cannot be looked at");
  if (!S_ISDIR(info.st_mode)) throw IoError("it is no folder");
  struct statfs kind {};
  if (::statfs(path.c_str(), &kind) != 0) fail("its file system cannot be asked");
  json answer;
  answer["filesystem"] = filesystem_name(static_cast<uint32_t>(kind.f_type));
  answer["bytes"] = static_cast<int64_t>(kind.f_blocks) * static_cast<int64_t>(kind.f_bsize);
  answer["free_bytes"] = static_cast<int64_t>(kind.f_bavail) * static_cast<int64_t>(kind.f_bsize);
  const LockCalls calls = system_lock_calls();
  const TrialFile file(path);
  answer["sync_seconds"] = file.sync_seconds();
  answer["clock_ahead"] = file.clock_ahead();
  answer["flock"] = file.excludes(calls.flock);
  answer["fcntl"] = file.excludes(calls.fcntl);
  return answer.dump();
}

}  // namespace

FolderFacts look_at_folder(const std::string& path) {
  FolderFacts f;
  std::error_code ignored;
  f.path =
      printable(std::filesystem::absolute(path.empty() ? "." : path, ignored).lexically_normal().string());
  const ProbeResult asked = probe([&] { return ask_folder(path.empty() ? "." : path); }, kFolderWithin);
  f.trouble = asked.trouble;
  if (!f.trouble.empty()) return f;
  const json answer = json::parse(asked.text);
  f.filesystem = answer.at("filesystem");
  f.bytes = answer.at("bytes");
  f.free_bytes = answer.at("free_bytes");
  f.sync_seconds = answer.at("sync_seconds");
  f.clock_ahead = answer.at("clock_ahead");
  f.flock = answer.at("flock");
  f.fcntl = answer.at("fcntl");
  return f;
}

}  // namespace pesc
