#include "runtime/export/export_folder.h"

#include <glog/logging.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "ops/core/check.h"
#include "runtime/checkpoint/process_identity.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace fs = std::filesystem;

namespace {

// "a/b" of "a/./b/".
std::string plain_path(const std::string& target) {
  fs::path path = fs::path(target).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  if (path.filename().empty() || path.filename() == "." || path.filename() == "..")
    throw UsageError(str_cat("--out ", in_quotes(target), ": give the name of a folder to be made"));
  return path.string();
}

// In the temporary folder, until it is renamed.
constexpr const char* kOwnerFile = ".exporting";
constexpr int64_t kMostOwnerBytes = 4096;
constexpr std::string_view kTemporary = ".tmp.";

// Whether `name` is that of a temporary folder of `target`.
bool is_temporary_of(std::string_view target, std::string_view name) {
  if (!name.starts_with(target) || !name.substr(target.size()).starts_with(kTemporary)) return false;
  const std::string_view pid = name.substr(target.size() + kTemporary.size());
  return !pid.empty() && std::ranges::all_of(pid, [](char c) { return '0' <= c && c <= '9'; });
}

// Whether the export that makes this folder is known to have ended.
bool is_leftover(FileSystem& files, const std::string& folder) {
  const std::string owner = join_path(folder, kOwnerFile);
  ProcessIdentity process;
  return files.kind(owner) == FileKind::kFile && parse(files.read_all(owner, kMostOwnerBytes), process) &&
         is_gone(process);
}

// Of exports to this target that were killed. What is not known to be one is named and stays.
void remove_leftovers(FileSystem& files, const std::string& parent, const std::string& target) {
  if (files.kind(parent) != FileKind::kDirectory) return;
  for (const std::string& name : files.list(parent)) {
    const std::string path = join_path(parent, name);
    if (!is_temporary_of(target, name) || files.kind(path) != FileKind::kDirectory) continue;
    if (is_leftover(files, path)) {
      files.remove_all(path);
      LOG(INFO) << in_quotes(path) << ", of an export that was killed, is removed";
    } else {
      LOG(WARNING)
          << in_quotes(path)
          << " is there: another export to this folder is running, perhaps on another host, or was killed; "
             "remove it if none is";
    }
  }
}

// `target` is what --out names.
void make_folder(FileSystem& files, const std::string& target, const std::string& path) {
  try {
    files.create_directory(path);
  } catch (const IoError& error) {
    const std::string parent = fs::path(path).parent_path().string();
    throw IoError(str_cat("--out ", in_quotes(target, kUncut), ": no folder can be made in ",
                          in_quotes(parent.empty() ? "." : parent, kUncut), ": ",
                          error.number == 0 ? error.what() : std::strerror(error.number)),
                  error.number);
  }
}

}  // namespace

void check_absent(FileSystem& files, const std::string& target) {
  if (!files.exists(plain_path(target))) return;
  throw UsageError(
      str_cat("--out ", in_quotes(target),
              ": is there already, and nothing is overwritten; name another folder, or remove it"));
}

ExportFolder::ExportFolder(FileSystem& files, const std::string& target)
    : files_(files), target_(plain_path(target)) {
  const fs::path path(target_);
  parent_ = path.has_parent_path() ? path.parent_path().string() : ".";
  temporary_ = str_cat(target_, kTemporary, ::getpid());
  check_absent(files_, target_);
  try {
    make_parents(parent_);
    remove_leftovers(files_, parent_, path.filename().string());
    if (files_.exists(temporary_)) {
      throw UsageError(str_cat("--out ", in_quotes(target_), ": ", in_quotes(temporary_),
                               " is there, which this export would write, and the export that left it is not "
                               "known to have ended; remove it if none is running, or name another folder"));
    }
    made_temporary_ = true;
    make_folder(files_, target_, temporary_);
    const auto owner = files_.create_file(join_path(temporary_, kOwnerFile));
    const std::string process = to_string(this_process());
    owner->append(std::as_bytes(std::span(process.data(), process.size())));
    owner->close();
  } catch (...) {
    clean_up();
    throw;
  }
}

ExportFolder::~ExportFolder() {
  if (!committed_) clean_up();
}

void ExportFolder::make_parents(const std::string& parent) {
  if (parent == "." || parent == "/" || files_.exists(parent)) return;
  const fs::path above = fs::path(parent).parent_path();
  make_parents(above.empty() ? "." : above.string());
  make_folder(files_, target_, parent);
  made_.push_back(parent);
  files_.sync_directory(above.empty() ? "." : above.string());
}

void ExportFolder::clean_up() noexcept {
  try {
    if (made_temporary_) files_.remove_all(temporary_);
    for (auto it = made_.rbegin(); it != made_.rend(); ++it) files_.remove(*it);
  } catch (const std::exception&) {
    // The disk does not let go of it. It has the temporary name, and the error that led here is told.
  }
}

void ExportFolder::add_folder(const std::string& name) {
  files_.create_directory(join_path(temporary_, name));
  folders_.push_back(name);
}

void ExportFolder::add_file(const std::string& name, const std::function<void(const ByteSink&)>& produce) {
  const auto file = files_.create_file(join_path(temporary_, name));
  produce([&](std::span<const std::byte> bytes) {
    file->append(bytes);
    bytes_ += static_cast<int64_t>(bytes.size());
  });
  file->sync();
  file->close();
  names_.push_back(name);
}

void ExportFolder::add_file(const std::string& name, std::string_view text) {
  add_file(name, [&](const ByteSink& sink) { sink(std::as_bytes(std::span(text.data(), text.size()))); });
}

void ExportFolder::commit() {
  for (const std::string& name : folders_) files_.sync_directory(join_path(temporary_, name));
  check_absent(files_, target_);
  files_.remove(join_path(temporary_, kOwnerFile));
  files_.sync_directory(temporary_);
  files_.rename(temporary_, target_);
  committed_ = true;
  files_.sync_directory(parent_);
}

void add_weight_files(ExportFolder& folder, std::vector<SafetensorsWriteEntry> entries, int64_t shard_bytes) {
  std::vector<std::vector<SafetensorsWriteEntry>> shards(1);
  int64_t in_shard = 0, total = 0;
  for (SafetensorsWriteEntry& entry : entries) {
    const int64_t bytes = safetensors_bytes(entry);
    if (in_shard > 0 && in_shard + bytes > shard_bytes) {
      shards.emplace_back();
      in_shard = 0;
    }
    in_shard += bytes;
    total += bytes;
    shards.back().push_back(std::move(entry));
  }
  const auto name_of = [&](size_t shard) -> std::string {
    if (shards.size() == 1) return "model.safetensors";
    char name[64];
    std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", shard + 1, shards.size());
    return name;
  };
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  auto& places = map.get_ref<nlohmann::ordered_json::object_t&>();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = name_of(i);
    folder.add_file(name, [&](const ByteSink& sink) {
      (void)stream_safetensors(name, shards[i], {{"format", "pt"}}, sink);
    });
    for (const SafetensorsWriteEntry& entry : shards[i]) places.emplace_back(entry.name, name);
  }
  if (shards.size() == 1) return;
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  folder.add_file("model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace pesc
