#include "runtime/checkpoint/folder_before.h"

#include <exception>
#include <fstream>
#include <iterator>

#include "ops/core/check.h"

namespace pesc {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLaunches = "launches.jsonl";
constexpr const char* kOfRanks[] = {"heartbeats", "deaths"};

std::string text_of_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// Regular files of `folder`; none where it is not there.
std::vector<fs::path> regular_files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    std::error_code ignored;
    if (entry.symlink_status(ignored).type() == fs::file_type::regular) files.push_back(entry.path());
  }
  return files;
}

void write_whole(const fs::path& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << bytes;
  if (!out.flush()) throw IoError(str_cat("'", path.string(), "' cannot be written"));
}

}  // namespace

FolderBefore::FolderBefore(const std::string& run_dir) : run_dir_(fs::absolute(run_dir).lexically_normal()) {
  if (!run_dir_.has_filename()) run_dir_ = run_dir_.parent_path();  // "runs/a/"
  std::error_code error;
  for (fs::path p = run_dir_; !fs::exists(p, error) && p.has_relative_path(); p = p.parent_path())
    missing_.push_back(p);
  had_lock_ = fs::exists(run_dir_ / kLockFile, error);
}

void FolderBefore::read_file(const fs::path& name) {
  std::error_code error;
  const auto time = fs::last_write_time(run_dir_ / name, error);
  if (!error) files_[name] = {text_of_file(run_dir_ / name), time};
}

void FolderBefore::read() {
  if (had_lock_) read_file(kLockFile);
  read_file(kLaunchIdFile);
  std::error_code error;
  for (const char* folder : kOfRanks) {
    if (!fs::exists(run_dir_ / folder, error)) missing_.insert(missing_.begin(), run_dir_ / folder);
    for (const fs::path& file : regular_files_in(run_dir_ / folder))
      read_file(fs::path(folder) / file.filename());
  }
  if (const auto size = fs::file_size(run_dir_ / kLaunches, error); !error) {
    launches_ = size;
    launches_time_ = fs::last_write_time(run_dir_ / kLaunches, error);
  }
}

void FolderBefore::put_back_file(const fs::path& name) const {
  const fs::path path = run_dir_ / name;
  const auto before = files_.find(name);
  if (before == files_.end()) {
    fs::remove(path);
    return;
  }
  if (text_of_file(path) == before->second.bytes) return;
  if (name == kLaunchIdFile) {  // never half of it
    const fs::path aside = path.string() + ".new";
    write_whole(aside, before->second.bytes);
    fs::rename(aside, path);
  } else {
    write_whole(path, before->second.bytes);
  }
  fs::last_write_time(path, before->second.time);
}

std::vector<std::string> FolderBefore::put_back() const noexcept {
  std::vector<std::string> failed;
  const auto attempt_to = [&](auto&& work) {
    try {
      work();
    } catch (const std::exception& error) {
      failed.push_back(
          str_cat("the refused start has left its traces in '", run_dir_.string(), "': ", error.what()));
    }
  };
  for (const char* folder : kOfRanks) {
    for (const fs::path& file : regular_files_in(run_dir_ / folder))
      attempt_to([&] { put_back_file(fs::path(folder) / file.filename()); });
  }
  attempt_to([&] {
    const fs::path launches = run_dir_ / kLaunches;
    if (!launches_) {
      fs::remove(launches);
    } else if (fs::file_size(launches) > *launches_) {
      fs::resize_file(launches, *launches_);
      if (launches_time_) fs::last_write_time(launches, *launches_time_);
    }
  });
  attempt_to([&] { put_back_file(kLaunchIdFile); });
  attempt_to([&] { put_back_file(kLockFile); });  // last: whoever opens it now finds the rest in order
  std::error_code ignored;
  for (const fs::path& folder : missing_) fs::remove(folder, ignored);  // only where it is empty
  return failed;
}

}  // namespace pesc
