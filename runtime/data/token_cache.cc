#include "runtime/data/token_cache.h"

#include <glog/logging.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "ops/core/check.h"
#include "runtime/data/cache_lock.h"
#include "runtime/data/row_bytes.h"
#include "runtime/data/token_cache_file.h"
#include "runtime/data/token_cache_key.h"
#include "runtime/data/tokenize_file.h"
#include "runtime/filesystem/filesystem.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::string_view kTemporary = ".tokens.tmp.";
constexpr const char* kDamaged = ".damaged";

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

IoError with_advice(const IoError& error) {
  return IoError(
      str_cat(error.what(),
              " (data.cache_dir: name a folder where there is room and that may be written, or none, "
              "to hold the rows in memory)"),
      error.number);
}

// Of this process on this host.
std::string temporary_name(const std::string& path) {
  char host[256] = {};
  if (::gethostname(host, sizeof host - 1) != 0) host[0] = '-';
  return str_cat(path, ".tmp.", host, ".", ::getpid());
}

// The source is looked at before its content is read.
SourceStamp first_stamp_of(const std::string& path) {
  static_cast<void>(open_row_bytes(path));  // says what is wrong with it
  return stamp_of(path);
}

// What a process that wrote says to those who waited for it: "failed NAME CODE\nMESSAGE".
std::string failure_text(const std::string& name, const Error& error) {
  return str_cat("failed ", name, " ", static_cast<int>(error.code()), "\n", error.what());
}
void throw_failure(const std::string& text, const std::string& name) {
  std::istringstream in(text);
  std::string word, of;
  int code = 0;
  if (!(in >> word >> of >> code) || word != "failed" || of != name) return;
  std::string what;
  in.get();
  std::getline(in, what, '\0');
  if (code == static_cast<int>(ExitCode::kData)) throw DataError(what);
  if (code == static_cast<int>(ExitCode::kUsage)) throw UsageError(what);
}

// The rows of a file of the cache. A row that turns out damaged puts the file aside.
class CachedRows : public TokenizedRows {
 public:
  // `source`: the path of the rows' file, which may be another one than it was.
  CachedRows(FileSystem& files, std::string path, std::string key, const std::string& source)
      : files_(files), key_(std::move(key)), file_(files, std::move(path), key_), report_(file_.report()) {
    if (report_.path == source) return;
    for (std::vector<std::string>* texts : {&report_.messages, &report_.warnings})
      for (std::string& text : *texts) rename(text, report_.path + ":", source + ":");
    report_.path = source;
  }
  [[nodiscard]] const FileReport& report() const override { return report_; }
  [[nodiscard]] int64_t length(int64_t row) const override { return file_.length(row); }
  [[nodiscard]] int32_t tag(int64_t row) const override { return file_.tag(row); }
  void read(int64_t row, TokenRow& out) const override {
    try {
      file_.read(row, out);
    } catch (const DamagedCache& error) {
      throw IoError(str_cat(error.what(), put_aside(row)
                                              ? "; it has been put aside, and the next start makes it anew"
                                              : "; remove it, and the next start makes it anew"));
    } catch (const IoError& error) {
      throw IoError(str_cat("token cache '", file_.path(), "': ", error.what(),
                            "; the next start makes it anew if it is gone"),
                    error.number);
    }
  }

 private:
  static void rename(std::string& text, const std::string& before, const std::string& now) {
    for (size_t at = 0; (at = text.find(before, at)) != std::string::npos; at += now.size())
      text.replace(at, before.size(), now);
  }
  // Unless there is another, sound one by now, or somebody else has done it.
  [[nodiscard]] bool put_aside(int64_t row) const noexcept {
    try {
      if (!files_.exists(file_.path())) return true;
      TokenRow read_again;
      TokenCacheFile(files_, file_.path(), key_).read(row, read_again);
      return true;
    } catch (const DamagedCache&) {
    } catch (const std::exception&) {
      return false;
    }
    try {
      files_.rename(file_.path(), file_.path() + kDamaged);
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }

  FileSystem& files_;
  std::string key_;
  TokenCacheFile file_;
  FileReport report_;
};

class TokenCache {
 public:
  TokenCache(const DatasetFile& file, const RowEncoder& encoder, const DatasetOptions& options)
      : file_(file),
        encoder_(encoder),
        options_(options),
        cache_(*options.cache),
        stamp_(first_stamp_of(file.path)),
        key_(token_cache_key(file, options)),
        path_(join_path(cache_.directory, key_.name)) {}

  std::unique_ptr<TokenizedRows> rows() {
    if (auto found = find()) return found;
    make_directory();
    const std::unique_ptr<CacheLock> lock = acquire();
    if (auto found = find()) return found;  // by now
    try {
      return make(*lock);
    } catch (const Error& error) {
      lock->write(failure_text(key_.name, error));
      throw;
    }
  }

 private:
  // Null where there is none, or none that is whole.
  std::unique_ptr<TokenizedRows> find() {
    damage_.clear();
    try {
      if (!files_.exists(path_)) return nullptr;
      auto found = std::make_unique<CachedRows>(files_, path_, key_.text, file_.path);
      if (cache_.announces) {
        LOG(INFO) << "token cache: the " << found->report().rows << " rows of " << printable(file_.path)
                  << " are read from '" << path_ << "'";
      }
      return found;
    } catch (const DamagedCache& error) {
      damage_ = error.what();
      return nullptr;
    } catch (const IoError& error) {
      if (error.number == ENOENT) return nullptr;
      throw with_advice(error);
    }
  }

  void make_directory() {
    std::error_code error;
    std::filesystem::create_directories(cache_.directory, error);
    if (error) throw with_advice(io_error("create folder", cache_.directory, error.value()));
  }

  std::unique_ptr<CacheLock> try_acquire(std::string& why) {
    try {
      return CacheLock::try_acquire(cache_.directory, why);
    } catch (const IoError& error) {
      throw with_advice(error);
    }
  }

  // Waits for the process that has the lock as long as it shows progress.
  std::unique_ptr<CacheLock> acquire() {
    std::string seen;
    auto lock = try_acquire(seen);
    if (lock != nullptr) return lock;
    LOG(INFO) << "token cache: waiting for the process that tokenises rows into '" << cache_.directory
              << "' (" << printable(seen) << ")";
    auto changed = Clock::now();
    auto told = changed;
    auto pause = std::chrono::milliseconds(20);
    while (lock == nullptr) {
      std::this_thread::sleep_for(pause);
      if (options_.still_wanted) options_.still_wanted();
      pause = std::min(2 * pause, std::chrono::milliseconds(500));
      std::string now;
      lock = try_acquire(now);
      if (now != seen) {
        seen = now;
        changed = Clock::now();
        if (options_.alive) options_.alive();
      }
      if (lock == nullptr && seconds_since(changed) > cache_.patience_seconds) {
        throw IoError(str_cat("data.cache_dir '", cache_.directory,
                              "': another process has had its lock for ", cache_.patience_seconds,
                              " s without progress (", printable(seen), "); end it, or name another folder"));
      }
      if (cache_.announces && seconds_since(told) > 60) {
        LOG(INFO) << "token cache: still waiting: " << printable(seen);
        told = Clock::now();
      }
    }
    throw_failure(lock->text_before(), key_.name);
    return lock;
  }

  std::unique_ptr<TokenizedRows> make(CacheLock& lock) {
    lock.write(this_process_name() + '\n');
    remove_what_is_left();
    const std::string temporary = temporary_name(path_);
    std::unique_ptr<TokenCacheWriter> writer;
    try {
      // Making a file in the folder also makes NFS look anew at what is in it.
      writer = std::make_unique<TokenCacheWriter>(files_, temporary, key_.text);
      if (auto found = find()) {
        writer.reset();
        files_.remove(temporary);
        return found;
      }
      if (!damage_.empty() && files_.exists(path_)) {
        LOG(WARNING) << damage_ << "; it is put aside and made anew";
        files_.rename(path_, path_ + kDamaged);
      }
      const auto begin = Clock::now();
      LOG(INFO) << "token cache: " << printable(file_.path) << " is tokenised into '" << path_ << "' with "
                << options_.threads << (options_.threads == 1 ? " thread" : " threads");
      tokenize_file(file_, encoder_, with_progress_in(lock), *writer);
      writer.reset();
      check_source();
      files_.rename(temporary, path_);
      files_.sync_directory(cache_.directory);
      lock.write(str_cat("done ", key_.name));
      const double seconds = seconds_since(begin);
      LOG(INFO) << "token cache: " << printable(file_.path) << " was tokenised in " << seconds << " s ("
                << static_cast<double>(stamp_.bytes) / 1e6 / std::max(seconds, 1e-9) << " MB/s)";
    } catch (const IoError& error) {
      forget(temporary);
      throw with_advice(error);
    } catch (...) {
      forget(temporary);
      throw;
    }
    auto made = find();
    if (made == nullptr)
      throw IoError(str_cat("token cache: '", path_, "' is not what was written: ", damage_));
    return made;
  }

  DatasetOptions with_progress_in(CacheLock& lock) {
    DatasetOptions options = options_;
    auto told = Clock::time_point();
    options.progress = [this, &lock, told](const TokenizingProgress& progress) mutable {
      if (options_.progress) options_.progress(progress);
      if (seconds_since(told) < 1) return;
      told = Clock::now();
      lock.write(str_cat(this_process_name(), ": ", progress.percent(), " % of ", printable(progress.path),
                         ", ", progress.rows, " rows\n"));
    };
    return options;
  }

  // The name says what the content was when it was read first.
  void check_source() const {
    if (stamp_of(file_.path) == stamp_) return;
    throw DataError(str_cat(file_.path, ": has been changed while it was read; start again"));
  }

  // Of writers that were killed: there is no other one now.
  void remove_what_is_left() {
    for (const std::string& name : files_.list(cache_.directory)) {
      if (name.starts_with("rows-") && name.find(kTemporary) != std::string::npos)
        forget(join_path(cache_.directory, name));
    }
  }
  void forget(const std::string& path) noexcept {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }

  const DatasetFile& file_;
  const RowEncoder& encoder_;
  const DatasetOptions& options_;
  const TokenCacheOptions& cache_;
  FileSystem& files_ = posix_filesystem();
  const SourceStamp stamp_;  // from before the content was read
  const TokenCacheKey key_;
  const std::string path_;
  std::string damage_;  // why the file that is there is none
};

}  // namespace

std::unique_ptr<TokenizedRows> cached_rows(const DatasetFile& file, const RowEncoder& encoder,
                                           const DatasetOptions& options) {
  PESC_CHECK(options.cache.has_value() && !options.on_row);
  return TokenCache(file, encoder, options).rows();
}

}  // namespace pesc
