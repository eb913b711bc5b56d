#include "runtime/data/row_bytes.h"

#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "ops/core/check.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/hf/mapped_file.h"

namespace pesc {
namespace {

constexpr uint64_t kFileBlock = uint64_t{1} << 17;
// zstd's own default: a frame that needs a larger window (zstd --long=28 and more) is refused.
constexpr int kMostWindowLog = 27;

struct Suffix {
  std::string_view text;
  Compression compression;
  const char* name;
};
constexpr Suffix kSuffixes[] = {{".gz", Compression::kGzip, "gzip"}, {".zst", Compression::kZstd, "zstd"}};

const Suffix& suffix_of(Compression compression) {
  return *std::ranges::find(kSuffixes, compression, &Suffix::compression);
}

Compression compression_of_first(std::string_view first) {
  if (first.starts_with("\x1F\x8B")) return Compression::kGzip;
  if (first.starts_with("\x28\xB5\x2F\xFD")) return Compression::kZstd;
  // A skippable frame of zstd, as some writers put in front: 0x184D2A50 to 0x184D2A5F, little-endian.
  if (first.size() >= 4 && (static_cast<unsigned char>(first[0]) & 0xF0U) == 0x50U &&
      first.substr(1, 3) == "\x2A\x4D\x18")
    return Compression::kZstd;
  return Compression::kNone;
}

// A file, block by block.
class Blocks {
 public:
  explicit Blocks(MappedFile file) : file_(std::move(file)) {}

  // The next block; empty at the end.
  std::span<char> next() {
    const uint64_t n = std::min(kFileBlock, file_.size() - offset_);
    buffer_.resize(n);
    file_.read_at(offset_, std::as_writable_bytes(std::span(buffer_)));
    offset_ += n;
    return buffer_;
  }
  [[nodiscard]] uint64_t offset() const { return offset_; }  // behind the block
  [[nodiscard]] const MappedFile& file() const { return file_; }

 private:
  MappedFile file_;
  std::vector<char> buffer_;
  uint64_t offset_ = 0;
};

class PlainBytes : public RowBytes {
 public:
  explicit PlainBytes(MappedFile file) : file_(std::move(file)) {}
  size_t read(std::span<char> to) override {
    const auto n = static_cast<size_t>(std::min<uint64_t>(to.size(), file_.size() - offset_));
    file_.read_at(offset_, std::as_writable_bytes(to.first(n)));
    offset_ += n;
    return n;
  }
  [[nodiscard]] uint64_t bytes_read() const override { return offset_; }
  [[nodiscard]] uint64_t file_size() const override { return file_.size(); }

 private:
  MappedFile file_;
  uint64_t offset_ = 0;
};

// What both decompressors have in common.
class CompressedBytes : public RowBytes {
 public:
  [[nodiscard]] uint64_t bytes_read() const override { return blocks_.offset() - unread(); }
  [[nodiscard]] uint64_t file_size() const override { return blocks_.file().size(); }

 protected:
  explicit CompressedBytes(MappedFile file) : blocks_(std::move(file)) {}
  [[nodiscard]] virtual size_t unread() const = 0;  // bytes of the block

  [[noreturn]] void damaged(const char* format, std::string_view why) const {
    throw DataError(str_cat(blocks_.file().path(), ": the ", format, " data is damaged at or before byte ",
                            bytes_read(), " of the file (", why, "); copy or download it again"));
  }
  [[noreturn]] void truncated(const char* format) const {
    throw DataError(
        str_cat(blocks_.file().path(), ": the ", format, " data is cut off at byte ", bytes_read(),
                ", the end of the file: a copy or download that was not finished; copy it again"));
  }

  Blocks blocks_;
};

// One gzip member or several, as pigz and bgzip write them; zeros may follow.
class GzipBytes : public CompressedBytes {
 public:
  explicit GzipBytes(MappedFile file) : CompressedBytes(std::move(file)) {
    constexpr int kGzipAlone = 16;
    if (inflateInit2(&stream_, MAX_WBITS + kGzipAlone) != Z_OK) throw std::bad_alloc();
  }
  ~GzipBytes() override { inflateEnd(&stream_); }
  GzipBytes(const GzipBytes&) = delete;
  GzipBytes& operator=(const GzipBytes&) = delete;

  size_t read(std::span<char> to) override {
    stream_.next_out = reinterpret_cast<Bytef*>(to.data());
    stream_.avail_out = static_cast<uInt>(to.size());
    while (stream_.avail_out == to.size()) {
      if (stream_.avail_in == 0 && !refill()) {
        if (!between_members_) truncated("gzip");
        return 0;
      }
      if (between_members_ && !begin_member()) continue;
      const int result = inflate(&stream_, Z_NO_FLUSH);
      if (result == Z_MEM_ERROR) throw std::bad_alloc();
      if (result == Z_STREAM_END) {
        between_members_ = true;
      } else if (result != Z_OK && result != Z_BUF_ERROR) {
        damaged("gzip", stream_.msg == nullptr ? "it needs a dictionary" : stream_.msg);
      }
    }
    return to.size() - stream_.avail_out;
  }

 private:
  [[nodiscard]] size_t unread() const override { return stream_.avail_in; }

  bool refill() {
    const std::span<char> block = blocks_.next();
    stream_.next_in = reinterpret_cast<Bytef*>(block.data());
    stream_.avail_in = static_cast<uInt>(block.size());
    return !block.empty();
  }

  // Passes over zeros behind the last member; false where the block ends with them.
  bool begin_member() {
    if (started_) {
      while (stream_.avail_in > 0 && *stream_.next_in == 0) {
        ++stream_.next_in;
        --stream_.avail_in;
      }
      if (stream_.avail_in == 0) return false;
      if (inflateReset(&stream_) != Z_OK) damaged("gzip", "it cannot be begun again");
    }
    started_ = true;
    between_members_ = false;
    return true;
  }

  z_stream stream_{};
  bool between_members_ = true;
  bool started_ = false;
};

class ZstdBytes : public CompressedBytes {
 public:
  explicit ZstdBytes(MappedFile file) : CompressedBytes(std::move(file)), stream_(ZSTD_createDStream()) {
    if (stream_ == nullptr) throw std::bad_alloc();
    ZSTD_DCtx_setParameter(stream_, ZSTD_d_windowLogMax, kMostWindowLog);
  }
  ~ZstdBytes() override { ZSTD_freeDStream(stream_); }
  ZstdBytes(const ZstdBytes&) = delete;
  ZstdBytes& operator=(const ZstdBytes&) = delete;

  size_t read(std::span<char> to) override {
    ZSTD_outBuffer out{to.data(), to.size(), 0};
    while (out.pos == 0) {
      // What is left in the decompressor comes out without further input.
      if (in_.pos == in_.size && !held_back_ && !refill()) {
        if (!between_frames_) truncated("zstd");
        return 0;
      }
      const size_t result = ZSTD_decompressStream(stream_, &out, &in_);
      if (ZSTD_isError(result) != 0) {
        if (ZSTD_getErrorCode(result) == ZSTD_error_memory_allocation) throw std::bad_alloc();
        if (ZSTD_getErrorCode(result) == ZSTD_error_frameParameter_windowTooLarge)
          throw DataError(str_cat(blocks_.file().path(),
                                  ": the window of the zstd data is larger than 128 MiB; ",
                                  "compress it without --long or --ultra"));
        damaged("zstd", ZSTD_getErrorName(result));
      }
      between_frames_ = result == 0;
      held_back_ = out.pos == out.size && !between_frames_;
    }
    return out.pos;
  }

 private:
  [[nodiscard]] size_t unread() const override { return in_.size - in_.pos; }

  bool refill() {
    const std::span<char> block = blocks_.next();
    in_ = {block.data(), block.size(), 0};
    return !block.empty();
  }

  ZSTD_DStream* stream_;
  ZSTD_inBuffer in_{nullptr, 0, 0};
  bool between_frames_ = true;
  bool held_back_ = false;
};

// Of a file whose name says that it is compressed.
void check_compressed(std::string_view first, const std::string& path, Compression named) {
  const Compression found = compression_of_first(first);
  if (found == named) return;
  const Suffix& suffix = suffix_of(named);
  if (found == Compression::kNone) {
    check_first_bytes(first, path, FileUse::kRows);
    throw DataError(str_cat(path, ": the name ends in ", suffix.text,
                            ", but the file is not compressed with ", suffix.name,
                            "; take the ending away if it is not compressed"));
  }
  throw DataError(str_cat(path, ": the name ends in ", suffix.text, ", but the file is compressed with ",
                          suffix_of(found).name, "; its name must end in ", suffix_of(found).text));
}

}  // namespace

Compression compression_of(std::string_view path) {
  for (const Suffix& suffix : kSuffixes)
    if (path.ends_with(suffix.text)) return suffix.compression;
  return Compression::kNone;
}

std::string_view without_compression(std::string_view path) {
  for (const Suffix& suffix : kSuffixes)
    if (path.ends_with(suffix.text)) path.remove_suffix(suffix.text.size());
  return path;
}

std::unique_ptr<RowBytes> open_row_bytes(const std::string& path) {
  MappedFile file(path);
  const std::string first = file.first_bytes();
  const Compression named = compression_of(path);
  if (named == Compression::kNone) {
    check_first_bytes(first, path, FileUse::kRows);
    if (path.ends_with(".parquet"))
      throw DataError(str_cat(path, ": the name is that of a Parquet file; ", kParquetToRows));
    return std::make_unique<PlainBytes>(std::move(file));
  }
  check_compressed(first, path, named);
  if (named == Compression::kGzip) return std::make_unique<GzipBytes>(std::move(file));
  return std::make_unique<ZstdBytes>(std::move(file));
}

}  // namespace pesc
