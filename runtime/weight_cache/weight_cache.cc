#include "runtime/weight_cache/weight_cache.h"

#include <glog/logging.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <map>
#include <system_error>
#include <thread>
#include <utility>

#include "model/quantized_tensor.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr const char* kTemporaryWeight = ".tmp.";
constexpr const char* kDamagedWeight = ".damaged";
constexpr const char* kWeightLock = ".lock";

double elapsed(SteadyClock::time_point begin) {
  return std::chrono::duration<double>(SteadyClock::now() - begin).count();
}

IoError with_cache_advice(const IoError& error) {
  return IoError(
      str_cat(error.what(),
              " (model.cache_dir: name a folder where there is room and that may be written, or none, to "
              "quantise the weights at every start)"),
      error.number);
}

// Of this process on this host.
std::string temporary_path(const std::string& path) {
  char host[256] = {};
  if (::gethostname(host, sizeof host - 1) != 0) host[0] = '-';
  return str_cat(path, kTemporaryWeight, host, ".", ::getpid());
}

}  // namespace

WeightCache::WeightCache(WeightSource& base, WeightCacheOptions options, FileSystem& files)
    : base_(base),
      options_(std::move(options)),
      files_(files),
      threads_(Device{.threads = std::max(options_.threads, 1)}),
      folder_(join_path(options_.directory, str_cat(frozen_format_name(options_.format), "-",
                                                    options_.base_digest, "-v", kQuantizingVersion))) {}

WeightCacheLayout WeightCache::layout(const ShardSpec& weight) const {
  return {options_.format, weight.global_rows, weight.global_cols};
}

std::string WeightCache::key(const ShardSpec& weight) const {
  return str_cat("quantised weights ", kQuantizingVersion, "\nbase ", options_.base_digest, "\nformat ",
                 frozen_format_name(options_.format), "\ntensor ", weight.name, "\nshape ",
                 weight.global_rows, " ", weight.global_cols, "\n");
}

std::unique_ptr<WeightCacheFile> WeightCache::find(const ShardSpec& weight, std::string& damage) {
  damage.clear();
  try {
    if (!files_.exists(path(weight))) return nullptr;
    return std::make_unique<WeightCacheFile>(files_, path(weight), layout(weight), key(weight));
  } catch (const DamagedWeights& error) {
    damage = error.what();
    return nullptr;
  } catch (const IoError& error) {
    if (error.number == ENOENT) return nullptr;
    throw with_cache_advice(error);
  }
}

bool WeightCache::verify(const ShardSpec& weight, std::string& damage) {
  const auto file = find(weight, damage);
  if (file == nullptr) return false;
  try {
    file->read(0, weight.global_rows, [](int64_t, int64_t, const uint8_t*, const float*) {});
    return true;
  } catch (const DamagedWeights& error) {
    damage = error.what();
    return false;
  }
}

void WeightCache::make_folder() {
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (error) throw with_cache_advice(io_error("create folder", folder_, error.value()));
}

std::unique_ptr<CacheLock> WeightCache::try_acquire(const ShardSpec& weight, std::string& holder) {
  try {
    const CacheLockFile file{path(weight) + kWeightLock, str_cat("weight '", path(weight), "'")};
    return CacheLock::try_acquire(file, holder);
  } catch (const IoError& error) {
    throw with_cache_advice(error);
  }
}

void WeightCache::fill(const std::vector<ShardSpec>& weights) {
  const auto is_there = [this](const ShardSpec& weight, std::string& damage) {
    return find(weight, damage) != nullptr;
  };
  std::vector<ShardSpec> missing;
  std::string damage;
  for (const ShardSpec& weight : weights) {
    if (!is_there(weight, damage)) missing.push_back(weight);
  }
  if (missing.empty()) {
    LOG_IF(INFO, options_.announces) << "weight cache: " << weights.size() << " weights in "
                                     << frozen_format_name(options_.format) << " are read from '" << folder_
                                     << "'";
    return;
  }
  make_folder();
  const auto begin = SteadyClock::now();
  LOG_IF(INFO, options_.announces) << "weight cache: " << missing.size() << " of " << weights.size()
                                   << " weights are quantised to " << frozen_format_name(options_.format)
                                   << " into '" << folder_ << "'";
  const auto first =
      static_cast<std::ptrdiff_t>(missing.size()) * options_.rank / std::max(options_.ranks, 1);
  std::rotate(missing.begin(), missing.begin() + first, missing.end());
  make_all(std::move(missing), is_there);
  LOG_IF(INFO, options_.announces) << "weight cache: they were quantised in " << elapsed(begin) << " s";
}

void WeightCache::make_all(std::vector<ShardSpec> weights,
                           const std::function<bool(const ShardSpec&, std::string&)>& whole) {
  std::map<std::string, std::string> seen;  // what stands in the locks of others
  auto changed = SteadyClock::now();
  auto told = changed;
  auto pause = std::chrono::milliseconds(10);
  while (!weights.empty()) {
    std::vector<ShardSpec> left;
    std::map<std::string, std::string> now;
    for (const ShardSpec& weight : weights) {
      if (options_.still_wanted) options_.still_wanted();
      std::string damage, holder;
      const auto lock = try_acquire(weight, holder);
      if (lock == nullptr) {
        now.emplace(weight.name, holder);
        left.push_back(weight);
        continue;
      }
      // Somebody else may have made it by now.
      if (!whole(weight, damage)) make(weight, *lock, damage);
      forget(path(weight) + kWeightLock);
    }
    if (now != seen || left.size() != weights.size()) {
      changed = SteadyClock::now();
      pause = std::chrono::milliseconds(10);
    }
    seen = std::move(now);
    weights = std::move(left);
    if (weights.empty()) return;
    const std::string& holder = seen.begin()->second;
    if (elapsed(changed) > options_.patience_seconds) {
      throw IoError(str_cat("model.cache_dir '", options_.directory,
                            "': another process has had the lock of ", seen.begin()->first, " for ",
                            options_.patience_seconds, " s without progress (", printable(holder),
                            "); end it, or name another folder"));
    }
    if (options_.announces && elapsed(told) > 60) {
      LOG(INFO) << "weight cache: waiting for " << weights.size() << " weights: " << printable(holder);
      told = SteadyClock::now();
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, std::chrono::milliseconds(500));
  }
}

void WeightCache::make(const ShardSpec& weight, CacheLock& lock, const std::string& damage) {
  lock.write(this_process_name() + '\n');
  remove_what_is_left(weight);
  const std::string temporary = temporary_path(path(weight));
  try {
    if (!damage.empty()) {
      LOG(WARNING) << damage << "; it is put aside, and the weight is quantised anew";
      files_.rename(path(weight), path(weight) + kDamagedWeight);
    }
    write_file(weight, temporary, lock);
    files_.rename(temporary, path(weight));
    files_.sync_directory(folder_);
  } catch (const IoError& error) {
    forget(temporary);
    throw with_cache_advice(error);
  } catch (...) {
    forget(temporary);
    throw;
  }
}

void WeightCache::write_file(const ShardSpec& weight, const std::string& path, CacheLock& lock) {
  const WeightCacheLayout at = layout(weight);
  WeightCacheWriter writer(files_, path, at);
  auto told = SteadyClock::now();
  const ReadRows rows_of_base = [&](int64_t row, int64_t rows, float* to) {
    if (options_.still_wanted) options_.still_wanted();
    base_.read({weight.name, at.rows, at.cols, row, rows, 0, at.cols}, to);
    if (elapsed(told) < 1) return;
    told = SteadyClock::now();
    lock.write(str_cat(this_process_name(), ": ", weight.name, ", row ", row, " of ", at.rows, "\n"));
  };
  QuantizedTensor tensor(threads_, weight, rows_of_base, options_.format);
  std::vector<uint8_t> codes(static_cast<size_t>(at.block_rows() * at.row_bytes()));
  std::vector<float> scales(static_cast<size_t>(at.block_rows()));
  for (int64_t row = 0; row < at.rows; row += at.block_rows()) {
    tensor.quantize(row, std::min(at.block_rows(), at.rows - row), codes.data(), scales.data());
    writer.add_block(codes.data(), scales.data());
  }
  writer.finish(at.format == FrozenFormat::kNF4 ? &tensor.nf4_scales() : nullptr, key(weight));
}

// Of writers that were killed: there is no other one of this weight now.
void WeightCache::remove_what_is_left(const ShardSpec& weight) {
  for (const std::string& name : files_.list(folder_)) {
    if (name.starts_with(weight.name + kTemporaryWeight)) forget(join_path(folder_, name));
  }
}

void WeightCache::forget(const std::string& path) noexcept {
  try {
    files_.remove(path);
  } catch (const std::exception&) {  // the next writer removes it
  }
}

bool WeightCache::write_quantized(Stream& stream, const ShardSpec& piece, const FrozenLinear& to) {
  if (to.type.format != options_.format) return false;
  if (piece.size() == 0) return true;
  for (bool made_anew = false;; made_anew = true) {
    std::string damage;
    try {
      if (const auto file = find(piece, damage)) {
        QuantizedPieceWriter writer(stream, piece, to,
                                    options_.format == FrozenFormat::kNF4 ? &file->nf4_scales() : nullptr);
        file->read(piece.row, piece.rows,
                   [&](int64_t row, int64_t rows, const uint8_t* codes, const float* scales) {
                     writer.write(row, rows, codes, scales);
                   });
        return true;
      }
    } catch (const DamagedWeights& error) {
      damage = error.what();
    }
    if (made_anew)
      throw with_cache_advice(IoError(damage.empty()
                                          ? str_cat("weight cache '", path(piece), "' is gone again")
                                          : damage + ", although it has just been made"));
    make_folder();
    make_all({{piece.name, piece.global_rows, piece.global_cols, 0, piece.global_rows, 0, piece.global_cols}},
             [this](const ShardSpec& weight, std::string& what) { return verify(weight, what); });
  }
}

}  // namespace pesc
