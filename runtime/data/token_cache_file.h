// A file of tokenised rows: written once, from its start to its end, and read by pread(2), a row at a time.
//
//   magic, version                                    16 bytes
//   a record a row   digest, token ids, learned bits  8 + 4 T + ceil(T / 8) bytes
//   index            T of every row, tag of every row  4 + 4 bytes a row
//   meta             JSON: the key, the report
//   end              where these are, their digests, magic  64 bytes
//
// Numbers are little-endian. Every byte is under a digest (XXH3-64): that of a record, seeded with the number
// of the row, is compared whenever the row is read; those of index, meta and end when the file is opened. So a
// file that is cut off, or was never finished, is recognised at once, and a damaged row before anything is made
// of it. In memory stand 4 bytes a row, and 4 more where the rows have several tags.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/core/check.h"
#include "runtime/data/tokenized_rows.h"
#include "runtime/filesystem/filesystem.h"

namespace pesc {

// Writes a file of the name that it is given; whoever makes it gives it its place (runtime/data/token_cache.h).
class TokenCacheWriter : public RowSink {
 public:
  // `key`: of the rows, all of it. Throws IoError, as all members do.
  TokenCacheWriter(FileSystem& files, const std::string& path, std::string key);
  ~TokenCacheWriter() override;
  void add(const TokenRow& row, int32_t tag) override;
  // Writes what follows the rows; syncs and closes the file.
  void finish(FileReport report) override;

 private:
  void append(const void* data, size_t size);
  void flush();

  std::unique_ptr<WritableFile> file_;
  std::string key_;
  std::vector<std::byte> buffer_;
  uint64_t offset_ = 0;  // behind the buffer
  std::vector<uint32_t> lengths_;
  std::vector<uint32_t> tags_;
};

struct TokenCacheEnd;  // the last bytes of the file

// The file cannot be what was written.
struct DamagedCache : IoError {
  using IoError::IoError;
};

class TokenCacheFile : public TokenizedRows {
 public:
  // Throws DamagedCache where the file is not whole, or is of another key; IoError where it cannot be read.
  TokenCacheFile(FileSystem& files, std::string path, const std::string& key);
  [[nodiscard]] const FileReport& report() const override { return report_; }
  [[nodiscard]] int64_t length(int64_t row) const override;
  [[nodiscard]] int32_t tag(int64_t row) const override;
  // Throws DamagedCache where the bytes are not those that were written.
  void read(int64_t row, TokenRow& out) const override;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  static constexpr int64_t kGroup = 64;  // rows
  [[nodiscard]] TokenCacheEnd read_end() const;
  void read_index(const TokenCacheEnd& end);
  void read_meta(const TokenCacheEnd& end, const std::string& key);
  [[noreturn]] void damaged(const std::string& what) const;

  std::string path_;
  std::unique_ptr<ReadableFile> file_;
  FileReport report_;
  std::vector<uint32_t> lengths_;  // [rows]
  std::vector<uint32_t> tags_;     // [rows]; empty: the rows have one tag
  std::vector<uint64_t> offsets_;  // of every kGroup-th record
};

// The report as JSON, and back: paths, which may have other bytes than UTF-8, are made printable. Throws
// DataError.
[[nodiscard]] std::string to_json(const FileReport& report, const std::string& key);
[[nodiscard]] FileReport report_from_json(const std::string& text, std::string& key);

}  // namespace pesc
