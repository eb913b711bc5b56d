// The rows of one file as they are trained on, in memory (MemoryRows) or in a file (token_cache_file.h).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace pesc {

struct TokenRow {
  std::vector<int32_t> tokens;  // [T]
  // [T]: 1 where labels[t] of the sample is tokens[t + 1], 0 where it is kUnsupervised.
  std::vector<uint8_t> supervised;
  friend bool operator==(const TokenRow&, const TokenRow&) = default;
};

// What has become of the rows of a file. DatasetReport has the sum over the files.
struct FileReport {
  std::string path;  // of the file, with which `messages` and `warnings` begin
  int64_t rows = 0;
  int64_t bad = 0, dropped = 0, truncated = 0, cut_inside = 0, too_long = 0, split = 0, split_rows = 0;
  int64_t tokens = 0, supervised = 0;
  int64_t longest = 0;                // tokens of a row
  uint64_t digest = 0;                // DatasetContent::digest
  std::vector<std::string> tags;      // in order of first appearance
  std::vector<std::string> messages;  // of the first bad and dropped rows
  std::vector<std::string> warnings;
  std::string optional;  // SourceReport::optional
  friend bool operator==(const FileReport&, const FileReport&) = default;
};

class TokenizedRows {
 public:
  virtual ~TokenizedRows() = default;
  [[nodiscard]] virtual const FileReport& report() const = 0;
  // REQUIRES of each: `row` is in [0, report().rows).
  [[nodiscard]] virtual int64_t length(int64_t row) const = 0;  // tokens
  [[nodiscard]] virtual int32_t tag(int64_t row) const = 0;     // in report().tags
  // Throws IoError where the rows are in a file that cannot be read, or is damaged. Thread-safe.
  virtual void read(int64_t row, TokenRow& out) const = 0;
};

// Gets the rows of a file one after another.
class RowSink {
 public:
  virtual ~RowSink() = default;
  virtual void add(const TokenRow& row, int32_t tag) = 0;
  virtual void finish(FileReport report) = 0;
};

class MemoryRows : public TokenizedRows, public RowSink {
 public:
  void add(const TokenRow& row, int32_t tag) override;
  void finish(FileReport report) override;
  [[nodiscard]] const FileReport& report() const override { return report_; }
  [[nodiscard]] int64_t length(int64_t row) const override;
  [[nodiscard]] int32_t tag(int64_t row) const override { return tags_.at(static_cast<size_t>(row)); }
  void read(int64_t row, TokenRow& out) const override;

 private:
  std::vector<int32_t> tokens_;      // of all rows, end to end
  std::vector<uint8_t> supervised_;  // beside tokens_
  std::vector<int64_t> offsets_{0};  // [rows + 1] into tokens_
  std::vector<int32_t> tags_;        // [rows]
  FileReport report_;
};

// The digest of what is trained on of a file: XXH3-64 over the digests of the row lengths, of the tokens and of
// which tokens are learned.
class RowsDigest {
 public:
  RowsDigest();
  ~RowsDigest();
  RowsDigest(const RowsDigest&) = delete;
  RowsDigest& operator=(const RowsDigest&) = delete;
  void add(const TokenRow& row);
  [[nodiscard]] uint64_t value() const;

 private:
  struct States;
  std::unique_ptr<States> states_;
};

}  // namespace pesc
