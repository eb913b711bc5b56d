// The bytes of a file of rows, one block after another. A file whose name ends in .gz or .zst is decompressed
// as it is read: no more of it is in memory than a block and the decompressor's window.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace pesc {

enum class Compression { kNone, kGzip, kZstd };

// By the end of the file's name.
[[nodiscard]] Compression compression_of(std::string_view path);
// "rows.jsonl.gz" -> "rows.jsonl"
[[nodiscard]] std::string_view without_compression(std::string_view path);

class RowBytes {
 public:
  virtual ~RowBytes() = default;
  // The next bytes, at most to.size(); 0 at the end. Throws DataError, with the offset in the file, for
  // compressed data that is damaged or ends too soon, IoError when the file cannot be read.
  [[nodiscard]] virtual size_t read(std::span<char> to) = 0;
  [[nodiscard]] virtual uint64_t bytes_read() const = 0;  // of the file, compressed as it is
  [[nodiscard]] virtual uint64_t file_size() const = 0;
};

// Throws DataError when there is no such file, it is not a regular one, or its first bytes are not what its
// name says: another compression, or none, or a file of another kind (Parquet).
[[nodiscard]] std::unique_ptr<RowBytes> open_row_bytes(const std::string& path);

}  // namespace pesc
