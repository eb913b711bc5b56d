#include "launcher/launch_mark.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <thread>

#include "ops/core/check.h"

namespace pesc {
namespace {

namespace fs = std::filesystem;

const std::string kSharedMemory = str_cat(kSharedMemoryFolder, "/");
constexpr int kWaitsForDeath = 100;
constexpr auto kWait = std::chrono::milliseconds(50);

}  // namespace

std::string temporary_folder() {
  const char* told = std::getenv("TMPDIR");
  if (told == nullptr || *told == '\0') return "/tmp";
  std::string path = fs::absolute(told).lexically_normal();
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

LaunchMark::LaunchMark(const std::string& run_dir, uint64_t launch_id)
    : temporary_(pesc::temporary_folder()), launch_id_(launch_id) {
  struct stat lock {};
  const std::string path = run_dir + "/pesc.lock";
  if (::stat(path.c_str(), &lock) != 0)
    throw IoError(str_cat("'", path, "' cannot be read: ", std::strerror(errno)));
  std::ostringstream out;
  out << std::hex << lock.st_dev << '-' << lock.st_ino << '-';
  run_ = out.str();
}

LaunchMark::LaunchMark(const std::string& run, const std::string& temporary)
    : run_(run), temporary_(temporary) {
  // A shorter one would stand for other people's runs.
  if (std::count(run.begin(), run.end(), '-') != 2 || run.size() < 4 || run.back() != '-' ||
      run.find_first_not_of("0123456789abcdef-") != std::string::npos)
    throw UsageError(str_cat("'", run, "' is no mark of a run"));
  if (!temporary.starts_with("/"))
    throw UsageError(str_cat("'", temporary, "' is no absolute path of a folder"));
}

std::string LaunchMark::text() const {
  return str_cat(run_, launch_id_);
}

void LaunchMark::make_directories() const {
  for (const std::string& path : {session_directory(), shared_memory_directory()}) {
    if (::mkdir(path.c_str(), 0700) != 0)
      throw IoError(str_cat("the folder '", path, "' cannot be made: ", std::strerror(errno)));
  }
}

void LaunchMark::remove_directories(const std::string& session_directory) {
  const std::string name = session_directory.substr(session_directory.rfind('/') + 1);
  if (!session_directory.starts_with("/") || !name.starts_with("pesc-") ||
      name.find_first_not_of("0123456789abcdef-", 5) != std::string::npos)
    return;
  for (const std::string& path : {session_directory, kSharedMemory + name}) {
    struct stat s {};
    if (::lstat(path.c_str(), &s) != 0 || s.st_uid != ::geteuid() || !S_ISDIR(s.st_mode)) continue;
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
}

void LaunchMark::make_shared_memory_directory() {
  const char* told = std::getenv("OMPI_MCA_btl_vader_backing_directory");
  const std::string path = told == nullptr ? "" : told;
  if (!path.starts_with(kSharedMemory + "pesc-") || path.find('/', kSharedMemory.size()) != std::string::npos)
    return;
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
    throw IoError(str_cat("the folder '", path, "' cannot be made: ", std::strerror(errno)));
}

std::vector<pid_t> LaunchMark::processes() const {
  std::vector<pid_t> found;
  const std::string mark = "PESC_LAUNCH=" + run_;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    pid_t pid = 0;
    const auto [end, wrong] = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (wrong != std::errc() || end != name.data() + name.size() || pid == ::getpid()) continue;
    std::ifstream in(entry.path() / "environ", std::ios::binary);
    const std::string environment{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    const size_t at = environment.find(mark);
    if (at != std::string::npos && (at == 0 || environment[at - 1] == '\0')) found.push_back(pid);
  }
  return found;
}

std::vector<std::string> LaunchMark::remove_leftovers() const {
  std::vector<std::string> notes;
  std::vector<pid_t> left = processes();
  if (!left.empty()) notes.push_back(str_cat(left.size(), " processes killed"));
  for (int i = 0; !left.empty() && i < kWaitsForDeath; ++i) {
    for (const pid_t pid : left) ::kill(pid, SIGKILL);
    std::this_thread::sleep_for(kWait);
    left = processes();
  }
  for (const pid_t pid : left) notes.push_back(str_cat("process ", pid, " cannot be killed"));
  // Launches of before may have had another TMPDIR, or none.
  for (const std::string& parent : std::set<std::string>{temporary_, "/tmp", kSharedMemoryFolder}) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(parent, error)) {
      if (!entry.path().filename().string().starts_with("pesc-" + run_)) continue;
      struct stat s {};
      if (::lstat(entry.path().c_str(), &s) != 0 || s.st_uid != ::geteuid() || !S_ISDIR(s.st_mode)) continue;
      std::error_code failed;
      fs::remove_all(entry.path(), failed);
      notes.push_back(failed ? str_cat(entry.path().string(), " cannot be removed: ", failed.message())
                             : str_cat(entry.path().string(), " removed"));
    }
  }
  return notes;
}

}  // namespace pesc
