#include "runtime/data/dataset.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "ops/core/check.h"
#include "runtime/data/permutation.h"

namespace pesc {
namespace {

constexpr double kMostEntries = 1e12;  // per file and epoch; far above any data, far below overflow

void check_arguments(const std::vector<DatasetFile>& files, const DatasetOptions& options) {
  if (files.empty()) throw UsageError("no data files are named");
  if (options.seq_len < 2) {
    throw UsageError(
        str_cat("seq_len is ", options.seq_len, "; it must be at least 2 for a token to be predicted"));
  }
  for (const DatasetFile& file : files) {
    if (!std::isfinite(file.weight) || file.weight <= 0) {
      throw UsageError(str_cat(file.path, ": the weight is ", file.weight, "; it must be a number above 0"));
    }
  }
}

}  // namespace

std::string to_string(const DatasetReport& report) {
  std::string text =
      str_cat(report.rows, " rows, ", report.tokens, " tokens, ", report.supervised, " of them learned");
  if (report.truncated > 0) text += str_cat("; ", report.truncated, " rows cut to the sequence length");
  if (report.dropped > 0)
    text += str_cat("; ", report.dropped, " rows dropped, there being nothing to learn in them");
  if (report.bad > 0) text += str_cat("; ", report.bad, " malformed rows skipped");
  for (const std::string& message : report.messages) text += "\n  " + message;
  return text;
}

Dataset::Dataset(const std::vector<DatasetFile>& files, const Tokenizer& tokenizer,
                 const DatasetOptions& options) {
  check_arguments(files, options);
  for (const DatasetFile& file : files) load(file, tokenizer, options);
  if (rows() == 0) {
    std::string names;
    for (const DatasetFile& file : files) names += (names.empty() ? "" : ", ") + file.path;
    throw DataError(str_cat("no row to learn from in ", names, ": ", to_string(report_)));
  }
  tokens_.shrink_to_fit();
  supervised_.shrink_to_fit();
}

void Dataset::load(const DatasetFile& file, const Tokenizer& tokenizer, const DatasetOptions& options) {
  Part part;
  part.first_row = rows();
  part.first_entry = epoch_size_;
  const std::string stem = std::filesystem::path(file.path).stem().string();
  const RowsReport read = for_each_row(file.path, options.rows, [&](Row&& row, const std::string& where) {
    if (!file.tag.empty()) row.tag = file.tag;
    if (row.tag.empty()) row.tag = stem;
    if (options.on_row) options.on_row(row);
    const Sample sample = encode_row(tokenizer, row, options.seq_len);
    if (sample.supervised == 0) {
      ++report_.dropped;
      note(str_cat(where, ": nothing to learn is left of the row in its first ", options.seq_len,
                   " tokens; dropped (a larger seq_len would keep it)"),
           options);
      return;
    }
    add(sample, tag_number(row.tag));
  });
  report_.bad += read.bad;
  report_.dropped += read.empty;
  for (const std::string& message : read.messages) note(message, options);

  part.rows = rows() - part.first_row;
  content_.push_back({file.path, part.rows, digest_from(part.first_row)});
  if (part.rows == 0) return;
  const double entries = std::max(1.0, std::round(file.weight * static_cast<double>(part.rows)));
  if (entries > kMostEntries) {
    throw UsageError(
        str_cat(file.path, ": a weight of ", file.weight, " makes an epoch of ", entries, " rows"));
  }
  epoch_size_ += static_cast<int64_t>(entries);
  part.whole_copies = static_cast<int64_t>(entries) / part.rows;
  parts_.push_back(part);
}

// Of the rows from `row` to the last. Lengths come in as numbers, so where the file lies among others does
// not matter.
uint64_t Dataset::digest_from(int64_t row) const {
  const auto first = static_cast<size_t>(row);
  const auto token = static_cast<size_t>(offsets_[first]);
  std::vector<int64_t> lengths;
  for (size_t r = first; r + 1 < offsets_.size(); ++r) lengths.push_back(offsets_[r + 1] - offsets_[r]);
  const auto of = [](const auto& values) { return XXH3_64bits(values.data(), values.size_bytes()); };
  const uint64_t parts[] = {of(std::span(lengths)), of(std::span(tokens_).subspan(token)),
                            of(std::span(supervised_).subspan(token))};
  return XXH3_64bits(parts, sizeof parts);
}

void Dataset::add(const Sample& sample, int32_t tag) {
  tokens_.insert(tokens_.end(), sample.tokens.begin(), sample.tokens.end());
  for (const int32_t label : sample.labels) supervised_.push_back(label != kUnsupervised ? 1 : 0);
  offsets_.push_back(static_cast<int64_t>(tokens_.size()));
  row_tags_.push_back(tag);
  longest_ = std::max(longest_, static_cast<int64_t>(sample.tokens.size()));
  ++report_.rows;
  report_.truncated += sample.truncated ? 1 : 0;
  report_.tokens += static_cast<int64_t>(sample.tokens.size());
  report_.supervised += sample.supervised;
}

void Dataset::note(std::string message, const DatasetOptions& options) {
  if (std::ssize(report_.messages) < options.rows.max_messages)
    report_.messages.push_back(std::move(message));
}

int32_t Dataset::tag_number(const std::string& name) {
  const auto found = std::ranges::find(tags_, name);
  if (found == tags_.end()) {
    tags_.push_back(name);
    return static_cast<int32_t>(tags_.size()) - 1;
  }
  return static_cast<int32_t>(found - tags_.begin());
}

std::span<const int32_t> Dataset::tokens(int64_t row) const {
  PESC_CHECK(row >= 0 && row < rows(), "row ", row, " of ", rows());
  const auto begin = static_cast<size_t>(offsets_[static_cast<size_t>(row)]);
  const auto end = static_cast<size_t>(offsets_[static_cast<size_t>(row) + 1]);
  return std::span(tokens_).subspan(begin, end - begin);
}

std::span<const uint8_t> Dataset::supervised(int64_t row) const {
  PESC_CHECK(row >= 0 && row < rows(), "row ", row, " of ", rows());
  const auto begin = static_cast<size_t>(offsets_[static_cast<size_t>(row)]);
  const auto end = static_cast<size_t>(offsets_[static_cast<size_t>(row) + 1]);
  return std::span(supervised_).subspan(begin, end - begin);
}

int64_t Dataset::entry_row(int64_t entry, int64_t epoch, uint64_t seed) const {
  PESC_CHECK(entry >= 0 && entry < epoch_size_, "entry ", entry, " of ", epoch_size_);
  const auto after = std::ranges::upper_bound(parts_, entry, {}, &Part::first_entry);
  const Part& part = *(after - 1);
  const int64_t at = entry - part.first_entry;
  if (at < part.whole_copies * part.rows) return part.first_row + at % part.rows;
  // The share of the epoch: the first rows of a shuffled file. Stream 0 is the sampler's.
  const auto stream = static_cast<uint32_t>(after - parts_.begin());
  const Permutation shuffled(part.rows, seed, stream, epoch);
  return part.first_row + shuffled(at - part.whole_copies * part.rows);
}

}  // namespace pesc
