// File systems that break on purpose.
//
// MemoryFileSystem keeps everything in memory, twice: as the running system sees it and as it stands on the
// disk. crash() throws away what was not synced, all of it or a seeded part (a real disk may have written any
// of it). FaultyFileSystem wraps any file system, counts its mutating operations, and fails the K-th, or all
// from the K-th on, or everything beyond a number of bytes.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "runtime/filesystem/filesystem.h"

namespace pesc::testing {

class MemoryFileSystem : public FileSystem {
 public:
  void create_directory(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    auto [parent, name] = parent_of(path, "create directory");
    auto& node = parent->entries[name];
    if (node && !node->directory) throw io_error("create directory", path, EEXIST);
    if (!node) node = std::make_shared<Node>(true);
  }
  std::unique_ptr<WritableFile> create_file(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    auto [parent, name] = parent_of(path, "create");
    auto& node = parent->entries[name];
    if (node && node->directory) throw io_error("create", path, EISDIR);
    if (!node) node = std::make_shared<Node>(false);
    node->data.clear();
    return std::make_unique<Writer>(*this, node);
  }
  std::unique_ptr<ReadableFile> open(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    const auto node = find(path);
    if (!node || node->directory) throw io_error("open", path, node ? EISDIR : ENOENT);
    return std::make_unique<Reader>(*this, node, path);
  }
  FileKind kind(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    const auto node = find(path);
    if (!node) return FileKind::kNone;
    return node->directory ? FileKind::kDirectory : FileKind::kFile;
  }
  std::vector<std::string> list(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    const auto node = find(path);
    if (!node || !node->directory) throw io_error("list", path, node ? ENOTDIR : ENOENT);
    std::vector<std::string> names;
    for (const auto& [name, entry] : node->entries) names.push_back(name);
    return names;
  }
  void rename(const std::string& from, const std::string& to) override {
    const std::lock_guard lock(mutex_);
    auto [source, old_name] = parent_of(from, "rename");
    auto [target, new_name] = parent_of(to, "rename");
    const auto found = source->entries.find(old_name);
    if (found == source->entries.end()) throw io_error("rename", from, ENOENT);
    const auto there = target->entries.find(new_name);
    if (there != target->entries.end() && there->second->directory && !there->second->entries.empty())
      throw io_error("rename", from, ENOTEMPTY);
    const auto node = found->second;
    source->entries.erase(found);
    target->entries[new_name] = node;
  }
  void remove(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    auto [parent, name] = parent_of(path, "remove");
    const auto found = parent->entries.find(name);
    if (found == parent->entries.end()) throw io_error("remove", path, ENOENT);
    if (found->second->directory && !found->second->entries.empty())
      throw io_error("remove", path, ENOTEMPTY);
    parent->entries.erase(found);
  }
  void sync_directory(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    const auto node = find(path);
    if (!node || !node->directory) throw io_error("sync directory", path, ENOENT);
    node->durable_entries = node->entries;
  }

  // The power is cut. Without a seed nothing that was not synced is there afterwards; with one, each
  // directory and each file draws whether it had been written all the same (a file also: a part of it).
  void crash(std::optional<uint64_t> seed = {}) {
    const std::lock_guard lock(mutex_);
    std::mt19937_64 random(seed.value_or(0));
    crash_node(*root_, seed ? &random : nullptr);
  }
  // What a damaged disk does: changes a file in place.
  std::vector<std::byte>& contents(const std::string& path) {
    const auto node = find(path);
    if (!node || node->directory) throw io_error("open", path, ENOENT);
    return node->data;
  }

 private:
  struct Node {
    explicit Node(bool is_directory) : directory(is_directory) {}
    bool directory;
    std::vector<std::byte> data, durable_data;
    std::map<std::string, std::shared_ptr<Node>> entries, durable_entries;
  };
  class Writer : public WritableFile {
   public:
    Writer(MemoryFileSystem& fs, std::shared_ptr<Node> node) : fs_(fs), node_(std::move(node)) {}
    void append(std::span<const std::byte> bytes) override {
      const std::lock_guard lock(fs_.mutex_);
      node_->data.insert(node_->data.end(), bytes.begin(), bytes.end());
    }
    void sync() override {
      const std::lock_guard lock(fs_.mutex_);
      node_->durable_data = node_->data;
    }
    void close() override {}

   private:
    MemoryFileSystem& fs_;
    std::shared_ptr<Node> node_;
  };
  class Reader : public ReadableFile {
   public:
    Reader(MemoryFileSystem& fs, std::shared_ptr<Node> node, std::string path)
        : fs_(fs), node_(std::move(node)), path_(std::move(path)) {}
    [[nodiscard]] int64_t size() const override { return static_cast<int64_t>(node_->data.size()); }
    void read(int64_t offset, std::span<std::byte> out) const override {
      const std::lock_guard lock(fs_.mutex_);
      if (offset < 0 || static_cast<uint64_t>(offset) + out.size() > node_->data.size())
        throw IoError(str_cat("cannot read '", path_, "': it ends at byte ", node_->data.size()));
      if (!out.empty()) std::memcpy(out.data(), node_->data.data() + offset, out.size());
    }

   private:
    MemoryFileSystem& fs_;
    std::shared_ptr<Node> node_;
    std::string path_;
  };

  std::shared_ptr<Node> find(const std::string& path) const {
    std::shared_ptr<Node> node = root_;
    for (size_t begin = 0; begin < path.size() && node;) {
      const size_t end = std::min(path.find('/', begin), path.size());
      if (end > begin) {
        const auto found = node->entries.find(path.substr(begin, end - begin));
        node = found == node->entries.end() ? nullptr : found->second;
      }
      begin = end + 1;
    }
    return node;
  }
  std::pair<std::shared_ptr<Node>, std::string> parent_of(const std::string& path, const char* what) const {
    const size_t slash = path.rfind('/');
    const auto parent = slash == std::string::npos ? root_ : find(path.substr(0, slash));
    if (!parent || !parent->directory) throw io_error(what, path, ENOENT);
    return {parent, path.substr(slash + 1)};
  }
  static void crash_node(Node& node, std::mt19937_64* random) {
    const bool written = random != nullptr && ((*random)() & 1) != 0;
    if (node.directory) {
      if (!written) node.entries = node.durable_entries;
      for (auto& [name, entry] : node.entries) crash_node(*entry, random);
      node.durable_entries = node.entries;
    } else {
      if (random != nullptr && !written && node.durable_data != node.data && ((*random)() & 1) != 0)
        node.data.resize(node.data.size() / 2);
      else if (!written)
        node.data = node.durable_data;
      node.durable_data = node.data;
    }
  }

  std::mutex mutex_;
  std::shared_ptr<Node> root_ = std::make_shared<Node>(true);
};

class FaultyFileSystem : public FileSystem {
 public:
  explicit FaultyFileSystem(FileSystem& base) : base_(base) {}

  // The K-th mutating operation from now on (0 is the next one) fails with `error_number` and has no effect.
  void fail_at(int64_t k, int error_number) { arm(k, error_number, false); }
  // So do that one and all after it, reads too: the process is dead.
  void stop_at(int64_t k) { arm(k, EIO, true); }
  // Appends beyond this many further bytes fail with ENOSPC, after a part of them was written.
  void limit_bytes(int64_t bytes) { space_ = bytes; }
  // The K-th reading operation from now on (opening a file or reading from one) fails, with `stay` all after
  // it.
  void fail_read_at(int64_t k, int error_number, bool stay = false) {
    const std::lock_guard lock(mutex_);
    reads_ = 0;
    read_target_ = Target{k, error_number, stay};
  }
  [[nodiscard]] int64_t reads() const { return reads_; }  // since the last fail_read_at() or heal()
  void heal() {
    const std::lock_guard lock(mutex_);
    target_.reset();
    read_target_.reset();
    reads_ = 0;
    space_.reset();
    operations_ = 0;
  }
  [[nodiscard]] int64_t operations() const { return operations_; }  // since the last of the calls above
  [[nodiscard]] int64_t bytes_written() const { return bytes_written_; }
  [[nodiscard]] int64_t bytes_read() const { return bytes_read_; }
  void reset_counts() { operations_ = bytes_written_ = bytes_read_ = 0; }

  void create_directory(const std::string& path) override {
    mutate("create directory", path);
    base_.create_directory(path);
  }
  std::unique_ptr<WritableFile> create_file(const std::string& path) override {
    mutate("create", path);
    return std::make_unique<Writer>(*this, base_.create_file(path), path);
  }
  std::unique_ptr<ReadableFile> open(const std::string& path) override {
    observe("open", path);
    count_read("open", path);
    return std::make_unique<Reader>(*this, base_.open(path), path);
  }
  FileKind kind(const std::string& path) override {
    observe("stat", path);
    return base_.kind(path);
  }
  std::vector<std::string> list(const std::string& path) override {
    observe("list", path);
    return base_.list(path);
  }
  void rename(const std::string& from, const std::string& to) override {
    mutate("rename", from);
    base_.rename(from, to);
  }
  void remove(const std::string& path) override {
    mutate("remove", path);
    base_.remove(path);
  }
  void sync_directory(const std::string& path) override {
    mutate("sync directory", path);
    base_.sync_directory(path);
  }

 private:
  class Writer : public WritableFile {
   public:
    Writer(FaultyFileSystem& fs, std::unique_ptr<WritableFile> file, std::string path)
        : fs_(fs), file_(std::move(file)), path_(std::move(path)) {}
    void append(std::span<const std::byte> bytes) override {
      fs_.mutate("write", path_);
      if (fs_.space_ && static_cast<int64_t>(bytes.size()) > *fs_.space_) {
        file_->append(bytes.first(static_cast<size_t>(*fs_.space_)));
        fs_.space_ = 0;
        throw io_error("write", path_, ENOSPC);
      }
      if (fs_.space_) *fs_.space_ -= static_cast<int64_t>(bytes.size());
      fs_.bytes_written_ += static_cast<int64_t>(bytes.size());
      file_->append(bytes);
    }
    void sync() override {
      fs_.mutate("sync", path_);
      file_->sync();
    }
    void close() override {
      fs_.mutate("close", path_);
      file_->close();
    }

   private:
    FaultyFileSystem& fs_;
    std::unique_ptr<WritableFile> file_;
    std::string path_;
  };
  class Reader : public ReadableFile {
   public:
    Reader(FaultyFileSystem& fs, std::unique_ptr<ReadableFile> file, std::string path)
        : fs_(fs), file_(std::move(file)), path_(std::move(path)) {}
    [[nodiscard]] int64_t size() const override { return file_->size(); }
    void read(int64_t offset, std::span<std::byte> out) const override {
      fs_.count_read("read", path_);
      fs_.bytes_read_ += static_cast<int64_t>(out.size());
      file_->read(offset, out);
    }

   private:
    FaultyFileSystem& fs_;
    std::unique_ptr<ReadableFile> file_;
    std::string path_;
  };

  struct Target {
    int64_t at;
    int error_number;
    bool stay;
  };
  void arm(int64_t k, int error_number, bool stay) {
    const std::lock_guard lock(mutex_);
    operations_ = 0;
    target_ = Target{k, error_number, stay};
  }
  void mutate(const char* what, const std::string& path) {
    const std::lock_guard lock(mutex_);
    const int64_t now = operations_++;
    if (target_ && (now == target_->at || (target_->stay && now > target_->at)))
      throw io_error(what, path, target_->error_number);
  }
  void count_read(const char* what, const std::string& path) {
    const std::lock_guard lock(mutex_);
    const int64_t now = reads_++;
    if (read_target_ && (now == read_target_->at || (read_target_->stay && now > read_target_->at)))
      throw io_error(what, path, read_target_->error_number);
  }
  void observe(const char* what, const std::string& path) {
    const std::lock_guard lock(mutex_);
    if (target_ && target_->stay && operations_ > target_->at)
      throw io_error(what, path, target_->error_number);
  }

  FileSystem& base_;
  std::mutex mutex_;
  std::optional<Target> target_, read_target_;
  std::optional<int64_t> space_;
  std::atomic<int64_t> operations_ = 0, reads_ = 0, bytes_written_ = 0, bytes_read_ = 0;
};

}  // namespace pesc::testing
