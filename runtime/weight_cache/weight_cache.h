// A folder of quantised frozen weights (model.cache_dir): a weight of a base is quantised once, by one rank, and every
// later start reads its codes from a file there.
//
// The weights of a base in a format are the files of a folder of their own, "NF4-DIGEST-v1": the digest is that of the base's
// files, the number is raised when weights are quantised otherwise than before. A file is a weight, whole, and carries its
// key (weight_cache_file.h). It is written under another name, synced and renamed, so that it is there whole or not at all; a
// process that is killed leaves a file with ".tmp." in its name, which the next writer of that weight removes. The ranks
// of a run, and other runs, share the work: each begins elsewhere in the list, and takes the lock of a weight
// (runtime/data/cache_lock.h) before it quantises it. What another process has the lock of is waited for as long as that one shows
// progress. A file that is cut off, damaged or of another key is put aside (its name gets ".damaged") and made anew with a
// warning, also where that is found only when its rows are read. Whatever is removed from the folder is made anew.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/frozen_linear.h"
#include "model/weight_source.h"
#include "ops/core/device.h"
#include "parallel/shard_spec.h"
#include "runtime/data/cache_lock.h"
#include "runtime/filesystem/filesystem.h"
#include "runtime/weight_cache/weight_cache_file.h"

namespace pesc {

// To be raised whenever weights are quantised, or read from a folder of a base, otherwise than before.
inline constexpr int kQuantizingVersion = 1;

struct WeightCacheOptions {
  std::string directory;    // model.cache_dir
  std::string base_digest;  // weights_part() of the base's digest
  FrozenFormat format = FrozenFormat::kNF4;
  int threads = 1;  // that quantise
  // Where in the list of weights this rank begins to quantise: at its `rank`-th part of `ranks`.
  int rank = 0, ranks = 1;
  // So long is waited for a process that quantises a weight and shows no progress.
  double patience_seconds = 1800;
  bool announces = false;  // whether this process says what is read, and what is quantised
  // Called often while weights are quantised or waited for; may throw an Error to end that.
  std::function<void()> still_wanted{};
};

// The base, whose quantised weights are in the cache.
class WeightCache : public WeightSource {
 public:
  // `base` and `files` outlive this object.
  WeightCache(WeightSource& base, WeightCacheOptions options, FileSystem& files = posix_filesystem());

  // Quantises into the folder what it lacks of these weights, or waits until others have: ModelParameters::
  // quantized_tensors(). Throws IoError where the folder or a file in it cannot be made, read or written, or another
  // process has shown no progress for so long; DataError for weights that are not finite.
  void fill(const std::vector<ShardSpec>& weights);

  [[nodiscard]] int64_t bytes_read() const override { return base_.bytes_read(); }
  [[nodiscard]] bool has(const std::string& name) const override { return base_.has(name); }
  void read(const ShardSpec& piece, float* to) override { base_.read(piece, to); }
  // From the file of the weight; where that turns out damaged, it is made anew first.
  [[nodiscard]] bool write_quantized(Stream& stream, const ShardSpec& piece, const FrozenLinear& to) override;

  // "DIRECTORY/NF4-DIGEST-v1".
  [[nodiscard]] const std::string& folder() const { return folder_; }

 private:
  [[nodiscard]] WeightCacheLayout layout(const ShardSpec& weight) const;
  [[nodiscard]] std::string key(const ShardSpec& weight) const;
  [[nodiscard]] std::string path(const ShardSpec& weight) const { return join_path(folder_, weight.name); }
  // Null where there is none, or none that is whole: `damage` says then why not.
  [[nodiscard]] std::unique_ptr<WeightCacheFile> find(const ShardSpec& weight, std::string& damage);
  // Whether every byte of the file is right. Else `damage` says what is wrong, or is empty where there is none.
  [[nodiscard]] bool verify(const ShardSpec& weight, std::string& damage);
  void make_folder();
  [[nodiscard]] std::unique_ptr<CacheLock> try_acquire(const ShardSpec& weight, std::string& holder);
  // Quantises these, and waits for those that others quantise. `whole`: says of a weight whether it is there by now.
  void make_all(std::vector<ShardSpec> weights,
                const std::function<bool(const ShardSpec&, std::string& damage)>& whole);
  void make(const ShardSpec& weight, CacheLock& lock, const std::string& damage);
  void write_file(const ShardSpec& weight, const std::string& path, CacheLock& lock);
  void remove_what_is_left(const ShardSpec& weight);
  void forget(const std::string& path) noexcept;

  WeightSource& base_;
  WeightCacheOptions options_;
  FileSystem& files_;
  Stream threads_;
  std::string folder_;
};

}  // namespace pesc
