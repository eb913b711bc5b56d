// A file of one quantised weight, whole: written once, from its start to its end.
//
//   magic, version        16 bytes
//   codes                 of row after row, quantized_row_bytes() each (model/quantized_tensor.h)
//   tail                  a scale a row, F32; NF4: the nested absmaxes and the offset, F32, and the absmax codes, a byte each;
//                         the digest of each block of codes, 8 bytes; the key, text
//   end                   bytes of codes and tail, their digest, magic: 48 bytes
//
// A block of codes is as many whole rows as fit in kWeightCacheBlock, at least one. Numbers are little-endian. Every byte
// is under a digest (XXH3-64): that of a block, seeded with its number, is compared whenever rows of it are read, that of
// the tail when the file is opened. So a file that is cut off, or was never finished, is recognised at once, and damaged
// codes before a weight is made of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/frozen_linear.h"
#include "ops/core/check.h"
#include "ops/nf4_scales.h"
#include "runtime/filesystem/filesystem.h"

namespace pesc {

inline constexpr int64_t kWeightCacheBlock = int64_t{4} << 20;  // bytes

// Where everything is in the file of a weight.
struct WeightCacheLayout {
  FrozenFormat format;
  int64_t rows, cols;
  [[nodiscard]] int64_t row_bytes() const;
  [[nodiscard]] int64_t block_rows() const;
  [[nodiscard]] int64_t blocks() const { return (rows + block_rows() - 1) / block_rows(); }
  [[nodiscard]] int64_t codes_bytes() const { return rows * row_bytes(); }
  // Of the tail: NF4's part.
  [[nodiscard]] int64_t nf4_floats() const;
  [[nodiscard]] int64_t nf4_codes() const;
  [[nodiscard]] int64_t tail_bytes(const std::string& key) const;
};

// The file cannot be what was written, or is of another key.
struct DamagedWeights : IoError {
  using IoError::IoError;
};

class WeightCacheWriter {
 public:
  // Throws IoError, as all members do.
  WeightCacheWriter(FileSystem& files, const std::string& path, const WeightCacheLayout& layout);
  // Of the next block of rows: their codes, and a scale each.
  void add_block(const uint8_t* codes, const float* scales);
  // Writes what follows the codes; syncs and closes the file. `nf4`: null unless the format is NF4.
  void finish(const Nf4Scales* nf4, const std::string& key);

 private:
  WeightCacheLayout layout_;
  std::unique_ptr<WritableFile> file_;
  std::vector<float> scales_;
  std::vector<uint64_t> digests_;
};

class WeightCacheFile {
 public:
  // Throws DamagedWeights where the file is not whole, or is of another key; IoError where it cannot be read.
  WeightCacheFile(FileSystem& files, std::string path, const WeightCacheLayout& layout,
                  const std::string& key);
  // Reads the blocks that hold rows of [row, row + rows), and calls use(first row, rows, codes, scales) for each. Throws
  // DamagedWeights where bytes are not those that were written.
  void read(int64_t row, int64_t rows,
            const std::function<void(int64_t, int64_t, const uint8_t*, const float*)>& use) const;
  [[nodiscard]] const Nf4Scales& nf4_scales() const { return nf4_; }  // NF4 alone

 private:
  [[noreturn]] void damaged(const std::string& what) const;
  void read_tail(const std::string& key);

  std::string path_;
  WeightCacheLayout layout_;
  std::unique_ptr<ReadableFile> file_;
  std::vector<float> scales_;
  Nf4Scales nf4_;
  std::vector<uint64_t> digests_;
};

}  // namespace pesc
