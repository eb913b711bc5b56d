#include "runtime/weight_cache/weight_cache_file.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>
#include <utility>

#include "model/quantized_tensor.h"

namespace pesc {
namespace {

static_assert(std::endian::native == std::endian::little, "the file's numbers are little-endian");

constexpr uint64_t kWeightsMagic = 0x3154484749455750;     // "PWEIGHT1"
constexpr uint64_t kWeightsEndMagic = 0x31444E4557534550;  // "PESWEND1"
constexpr uint64_t kWeightsVersion = 1;
constexpr int64_t kWeightsHeader = 16;  // bytes

struct WeightsEnd {
  uint64_t codes_bytes = 0;
  uint64_t tail_bytes = 0;
  uint64_t tail_digest = 0;
  uint64_t version = kWeightsVersion;
  uint64_t digest = 0;  // of all above
  uint64_t magic = kWeightsEndMagic;
  [[nodiscard]] uint64_t right_digest() const {
    return XXH3_64bits_withSeed(this, offsetof(WeightsEnd, digest), kWeightsVersion);
  }
};

template <class T>
void append_values(std::vector<std::byte>& to, const T* values, size_t count) {
  const auto* bytes = reinterpret_cast<const std::byte*>(values);
  to.insert(to.end(), bytes, bytes + count * sizeof(T));
}
template <class T>
void take_values(const std::byte*& from, T* values, size_t count) {
  if (count > 0) std::memcpy(values, from, count * sizeof(T));
  from += count * sizeof(T);
}

}  // namespace

int64_t WeightCacheLayout::row_bytes() const {
  return quantized_row_bytes(format, cols);
}
int64_t WeightCacheLayout::block_rows() const {
  return std::clamp<int64_t>(kWeightCacheBlock / row_bytes(), 1, rows);
}
int64_t WeightCacheLayout::nf4_floats() const {
  return format == FrozenFormat::kNF4 ? Nf4Scales::groups(rows * cols) + 1 : 0;
}
int64_t WeightCacheLayout::nf4_codes() const {
  return format == FrozenFormat::kNF4 ? Nf4Scales::blocks(rows * cols) : 0;
}
int64_t WeightCacheLayout::tail_bytes(const std::string& key) const {
  return 4 * (rows + nf4_floats()) + nf4_codes() + 8 * blocks() + std::ssize(key);
}

// --- written

WeightCacheWriter::WeightCacheWriter(FileSystem& files, const std::string& path,
                                     const WeightCacheLayout& layout)
    : layout_(layout), file_(files.create_file(path)) {
  const uint64_t header[] = {kWeightsMagic, kWeightsVersion};
  file_->append(std::as_bytes(std::span(header)));
}

void WeightCacheWriter::add_block(const uint8_t* codes, const float* scales) {
  const int64_t rows = std::min(layout_.block_rows(), layout_.rows - std::ssize(scales_));
  PESC_CHECK(rows > 0, "more rows than ", layout_.rows);
  const std::span bytes(codes, static_cast<size_t>(rows * layout_.row_bytes()));
  file_->append(std::as_bytes(bytes));
  digests_.push_back(XXH3_64bits_withSeed(bytes.data(), bytes.size(), digests_.size()));
  scales_.insert(scales_.end(), scales, scales + rows);
}

void WeightCacheWriter::finish(const Nf4Scales* nf4, const std::string& key) {
  PESC_CHECK(std::ssize(scales_) == layout_.rows, scales_.size(), " rows of ", layout_.rows);
  std::vector<std::byte> tail;
  append_values(tail, scales_.data(), scales_.size());
  if (nf4 != nullptr) {
    append_values(tail, nf4->nested.data(), nf4->nested.size());
    append_values(tail, &nf4->offset, 1);
    append_values(tail, nf4->absmax_codes.data(), nf4->absmax_codes.size());
  }
  append_values(tail, digests_.data(), digests_.size());
  append_values(tail, key.data(), key.size());
  PESC_CHECK(std::ssize(tail) == layout_.tail_bytes(key), "a tail of ", tail.size(), " bytes, not of ",
             layout_.tail_bytes(key));
  file_->append(tail);
  WeightsEnd end;
  end.codes_bytes = static_cast<uint64_t>(layout_.codes_bytes());
  end.tail_bytes = tail.size();
  end.tail_digest = XXH3_64bits(tail.data(), tail.size());
  end.digest = end.right_digest();
  file_->append(std::as_bytes(std::span(&end, 1)));
  file_->sync();
  file_->close();
}

// --- read

WeightCacheFile::WeightCacheFile(FileSystem& files, std::string path, const WeightCacheLayout& layout,
                                 const std::string& key)
    : path_(std::move(path)), layout_(layout), file_(files.open(path_)) {
  read_tail(key);
}

void WeightCacheFile::damaged(const std::string& what) const {
  throw DamagedWeights(str_cat("weight cache '", path_, "': ", what));
}

void WeightCacheFile::read_tail(const std::string& key) {
  const int64_t size = file_->size();
  WeightsEnd end;
  const auto end_bytes = static_cast<int64_t>(sizeof end);
  if (size < kWeightsHeader + end_bytes) damaged(str_cat("it has ", size, " bytes, and no end"));
  uint64_t header[2] = {};
  file_->read(0, std::as_writable_bytes(std::span(header)));
  file_->read(size - end_bytes, std::as_writable_bytes(std::span(&end, 1)));
  if (header[0] != kWeightsMagic || header[1] != kWeightsVersion)
    damaged("it does not begin as one of this version");
  if (end.magic != kWeightsEndMagic || end.digest != end.right_digest())
    damaged("it does not end as one; it is cut off or damaged");
  const auto codes_bytes = static_cast<uint64_t>(layout_.codes_bytes());
  const auto tail_bytes = static_cast<uint64_t>(layout_.tail_bytes(key));
  // Another key may have another length.
  const bool fits =
      end.codes_bytes + end.tail_bytes == static_cast<uint64_t>(size - kWeightsHeader - end_bytes);
  if (!fits) damaged(str_cat("its parts do not make its ", size, " bytes"));
  if (end.codes_bytes != codes_bytes || end.tail_bytes != tail_bytes)
    damaged("it holds weights of another base, format or version than its name says");
  std::vector<std::byte> tail(tail_bytes);
  file_->read(kWeightsHeader + layout_.codes_bytes(), tail);
  if (XXH3_64bits(tail.data(), tail.size()) != end.tail_digest) damaged("its scales are damaged");
  scales_.resize(static_cast<size_t>(layout_.rows));
  digests_.resize(static_cast<size_t>(layout_.blocks()));
  std::string written_key(key.size(), '\0');
  const std::byte* at = tail.data();
  take_values(at, scales_.data(), scales_.size());
  if (layout_.format == FrozenFormat::kNF4) {
    nf4_.nested.resize(static_cast<size_t>(layout_.nf4_floats() - 1));
    nf4_.absmax_codes.resize(static_cast<size_t>(layout_.nf4_codes()));
    take_values(at, nf4_.nested.data(), nf4_.nested.size());
    take_values(at, &nf4_.offset, 1);
    take_values(at, nf4_.absmax_codes.data(), nf4_.absmax_codes.size());
  }
  take_values(at, digests_.data(), digests_.size());
  take_values(at, written_key.data(), written_key.size());
  if (written_key != key) damaged("it holds weights of another base, format or version than its name says");
}

void WeightCacheFile::read(
    int64_t row, int64_t rows,
    const std::function<void(int64_t, int64_t, const uint8_t*, const float*)>& use) const {
  PESC_CHECK(row >= 0 && rows > 0 && row + rows <= layout_.rows, "rows from ", row, " of ", layout_.rows);
  std::vector<uint8_t> codes;
  for (int64_t block = row / layout_.block_rows(); block * layout_.block_rows() < row + rows; ++block) {
    const int64_t first = block * layout_.block_rows();
    const int64_t n = std::min(layout_.block_rows(), layout_.rows - first);
    codes.resize(static_cast<size_t>(n * layout_.row_bytes()));
    try {
      file_->read(kWeightsHeader + first * layout_.row_bytes(), std::as_writable_bytes(std::span(codes)));
    } catch (const IoError& error) {
      if (error.number == 0) damaged(str_cat("it is cut off: ", error.what()));
      throw;
    }
    if (XXH3_64bits_withSeed(codes.data(), codes.size(), static_cast<uint64_t>(block)) !=
        digests_[static_cast<size_t>(block)])
      damaged(str_cat("rows ", first, " to ", first + n, " are damaged"));
    use(first, n, codes.data(), scales_.data() + first);
  }
}

}  // namespace pesc
