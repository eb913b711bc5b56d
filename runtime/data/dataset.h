// All training (or evaluation) rows, tokenised: in memory, or in files of a cache (runtime/data/token_cache.h), from
// which a row is read when it is asked for. An epoch has `epoch_size()` entries. A file of weight w
// with m rows has w * m entries in it (rounded, at least one): each row floor(w) times, and the rest from a
// subset of the rows that is drawn for each epoch as a function of (seed, epoch).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/data/dataset_options.h"
#include "runtime/data/row_encoder.h"
#include "runtime/data/tokenized_rows.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

// What one source gives to an epoch.
struct SourceReport {
  std::string path;
  int64_t rows = 0;        // kept
  double weight = 1;       // as the experiment sets it
  int64_t epoch_rows = 0;  // its rows in an epoch
  std::string optional;    // "\"history\" (3 rows)": fields that are read besides question and answer
};

struct DatasetReport {
  int64_t rows = 0;     // kept
  int64_t bad = 0;      // malformed and skipped (RowOptions::on_bad_row); of a split, in the part trained on
  int64_t dropped = 0;  // nothing to learn: an empty answer, or none of it left after truncation
  int64_t truncated = 0;              // kept, but cut to max_seq_length (runtime/data/long_rows.h)
  int64_t cut_inside = 0;             // of these, cut within an answer or a text
  int64_t too_long = 0;               // dropped for their length (DatasetOptions::on_long_row)
  int64_t split = 0;                  // plain texts that became several rows
  int64_t split_rows = 0;             // these rows
  int64_t tokens = 0;                 // of the kept rows
  int64_t supervised = 0;             // of these, tokens that carry loss
  std::vector<std::string> messages;  // of the first bad and dropped rows: "file:line: what"
  std::vector<SourceReport> sources;  // in their order
  // Whole sentences: where the data is used otherwise than the experiment asks, or cannot be learned as it
  // is.
  std::vector<std::string> warnings;
};
// What is trained on of one file.
struct DatasetContent {
  std::string path;
  int64_t rows = 0;
  uint64_t digest = 0;  // XXH3-64 of tokens, row lengths and which tokens are learned; tags are not in it
};
// "3000 rows, 512000 tokens, 80000 of them learned; 4 rows cut to the sequence length; 1 dropped: ...", and a line a
// source.
[[nodiscard]] std::string to_string(const DatasetReport& report);

class Dataset {
 public:
  // Throws DataError for bad rows (as the options say), bad files, and when no row (of the split's part) is
  // left; UsageError for no files, a max_seq_length below 2 or a weight that is not a positive number. A row
  // without tag gets the file's name without folder and ending.
  Dataset(const std::vector<DatasetFile>& files, const RowEncoder& encoder, const DatasetOptions& options);
  // With the published prompt.
  Dataset(const std::vector<DatasetFile>& files, const Tokenizer& tokenizer, const DatasetOptions& options)
      : Dataset(files, RowEncoder(tokenizer), options) {}

  [[nodiscard]] int64_t rows() const { return rows_; }
  [[nodiscard]] int64_t length(int64_t row) const;  // tokens
  // The row's tokens and which of them are learned. Throws IoError where it is in a file that cannot be read, or
  // is damaged.
  void read(int64_t row, TokenRow& out) const;
  [[nodiscard]] TokenRow read(int64_t row) const;
  [[nodiscard]] int32_t tag(int64_t row) const;  // in tags()
  [[nodiscard]] const std::vector<std::string>& tags() const {
    return tags_;
  }                                                               // in order of first appearance
  [[nodiscard]] int64_t longest_row() const { return longest_; }  // tokens
  [[nodiscard]] const DatasetReport& report() const { return report_; }
  [[nodiscard]] const std::vector<DatasetContent>& content() const { return content_; }  // one a file

  [[nodiscard]] int64_t epoch_size() const { return epoch_size_; }
  // The row of entry `entry` of [0, epoch_size()) in that epoch.
  [[nodiscard]] int64_t entry_row(int64_t entry, int64_t epoch, uint64_t seed) const;

 private:
  struct Part {  // one file
    std::unique_ptr<TokenizedRows> rows;
    std::vector<int32_t> tags;  // of its tags, the numbers in tags_
    int64_t first_row = 0;
    int64_t first_entry = 0;
    int64_t whole_copies = 0;  // floor(weight)
  };
  void refuse_no_rows(const std::vector<DatasetFile>& files, const RowSplit& split) const;
  void load(const DatasetFile& file, const RowEncoder& encoder, const DatasetOptions& options);
  void add_report(const FileReport& file, int64_t max_messages);
  // Calls with the row's part and its number in that.
  template <class Use>
  auto in_part(int64_t row, const Use& use) const;
  [[nodiscard]] int32_t tag_number(const std::string& name);

  std::vector<Part> parts_;  // those that have rows
  int64_t rows_ = 0;
  std::vector<std::string> tags_;
  std::unordered_map<std::string, int32_t> tag_numbers_;
  std::vector<DatasetContent> content_;
  int64_t epoch_size_ = 0;
  int64_t longest_ = 0;
  DatasetReport report_;
};

}  // namespace pesc
