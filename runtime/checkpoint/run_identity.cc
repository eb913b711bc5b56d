#include "runtime/checkpoint/run_identity.h"

#include <cstdio>
#include <random>
#include <sstream>

#include "ops/core/check.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/store.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr size_t kIdDigits = 32;
constexpr int64_t kMaxRunFileBytes = 4096;

bool is_id(const std::string& text) {
  return text.size() == kIdDigits && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::string random_id() {
  std::random_device random;
  std::string id;
  for (size_t i = 0; i < kIdDigits / 8; ++i) {
    char text[16];
    std::snprintf(text, sizeof(text), "%08x", static_cast<unsigned>(random()));
    id += text;
  }
  return id;
}

bool all_digits(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

// Same base, same data order, as many rows a step.
bool alike(const proto::Manifest& a, const proto::Manifest& b) {
  return a.base().digest() == b.base().digest() && a.seed() == b.seed() &&
         static_cast<__int128>(a.consumed_samples()) * b.step() ==
             static_cast<__int128>(b.consumed_samples()) * a.step();
}

}  // namespace

RunIdentity parse_run_identity(const std::string& text, const std::string& where) {
  const auto damaged = [&](const std::string& line) {
    return DataError(str_cat("'", where, "' is damaged (line '", printable(line.substr(0, 80)),
                             "'): remove it, and the run gets a new one from its newest checkpoint"));
  };
  RunIdentity run;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string key;
    words >> key;
    bool good = false;
    if (key == "run") {
      words >> run.id;
      good = is_id(run.id);
    } else if (key == "from_step") {
      good = static_cast<bool>(words >> run.from_step) && run.from_step >= 0;
    } else if (key == "from_run") {
      words >> run.from;
      good = is_id(run.from);
    } else if (key == "unnamed_before") {
      good = static_cast<bool>(words >> run.unnamed_before);
    }
    if (std::string more; !good || words >> more) throw damaged(line);
  }
  if (run.id.empty()) throw damaged("");
  return run;
}

std::string to_string(const RunIdentity& run) {
  if (run.id.empty()) return {};
  std::string text = str_cat("run ", run.id, '\n');
  if (run.from_step >= 0) text += str_cat("from_step ", run.from_step, '\n');
  if (!run.from.empty()) text += str_cat("from_run ", run.from, '\n');
  if (run.unnamed_before > 0) text += str_cat("unnamed_before ", run.unnamed_before, '\n');
  return text;
}

RunIdentity read_run_identity(FileSystem& files, const std::string& run_dir) {
  const std::string path = join_path(run_dir, kRunFile);
  if (!files.exists(path)) return {};
  return parse_run_identity(files.read_all(path, kMaxRunFileBytes), path);
}

void write_run_identity(FileSystem& files, const std::string& run_dir, const RunIdentity& run,
                        uint64_t launch_id) {
  const std::string path = join_path(run_dir, kRunFile);
  const std::string temporary = str_cat(path, ".new.", launch_id);
  const std::string text = to_string(run);
  const auto file = files.create_file(temporary);
  file->append(std::as_bytes(std::span(text)));
  file->sync();
  file->close();
  files.rename(temporary, path);
  files.sync_directory(run_dir);
}

RunIdentity new_run_identity(const proto::Manifest* resumed, uint64_t launch_id) {
  RunIdentity run;
  run.id = random_id();
  if (resumed == nullptr) return run;
  if (resumed->run_id().empty() && resumed->launch_id() < launch_id) {
    run.unnamed_before = launch_id;
  } else {
    run.from = resumed->run_id();
    run.from_step = resumed->step();
  }
  return run;
}

bool continues(const RunIdentity& run, const proto::Manifest& manifest) {
  if (run.id.empty() || manifest.run_id() == run.id) return true;
  if (run.from_step >= 0 && manifest.run_id() == run.from && manifest.step() <= run.from_step) return true;
  return manifest.run_id().empty() && manifest.launch_id() < run.unnamed_before;
}

bool wrote(const RunIdentity& run, const proto::Manifest& manifest, const proto::Manifest& like) {
  if (!manifest.run_id().empty() || run.id.empty()) return manifest.run_id() == run.id;
  return manifest.launch_id() < run.unnamed_before && alike(manifest, like);
}

std::string foreign_name(FileSystem& files, const std::string& path) {
  for (const std::string& name : files.list(path))
    if (name != kManifestName && !is_shard_name(name)) return name;
  return {};
}

std::string why_no_checkpoint(FileSystem& files, const std::string& path) {
  const FileKind kind = files.kind(path);
  if (kind == FileKind::kFile) return "it is a file";
  // A link to a folder is followed, as it is by whoever opens a file below it.
  if (kind != FileKind::kDirectory || files.exists(join_path(path, kManifestName))) return {};
  for (const std::string& name : files.list(path))
    if (is_shard_name(name)) return {};
  return str_cat("it holds no ", kManifestName, " and no shard");
}

bool looks_like_checkpoint_name(const std::string& name) {
  if (!name.starts_with("step-") || step_of_directory(name)) return false;
  const size_t dot = name.find('.');
  if (dot == std::string::npos || !step_of_directory(name.substr(0, dot))) return true;
  const std::string rest = name.substr(dot);
  const bool side = rest.starts_with(".tmp.") || rest.starts_with(".old.") || rest.starts_with(".bad.");
  return !side || !all_digits(rest.substr(5));
}

void remove_checkpoint_folder(FileSystem& files, const std::string& path) {
  const FileKind kind = files.kind(path);
  if (kind == FileKind::kNone) return;
  if (kind != FileKind::kDirectory)
    throw IoError(str_cat("'", path, "' stays: it is not a folder that pesc has made"));
  if (const std::string name = foreign_name(files, path); !name.empty())
    throw IoError(
        str_cat("'", path, "' stays: it holds '", printable(name), "', which pesc has not written"));
  files.remove_all(path);
}

}  // namespace pesc
