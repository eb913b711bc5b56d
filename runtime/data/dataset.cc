#include "runtime/data/dataset.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "ops/core/check.h"
#include "runtime/data/permutation.h"
#include "runtime/data/token_cache.h"
#include "runtime/data/tokenize_file.h"

namespace pesc {
namespace {

constexpr double kMostEntries = 1e12;  // per file and epoch; far above any data, far below overflow

void check_arguments(const std::vector<DatasetFile>& files, const DatasetOptions& options) {
  if (files.empty()) throw UsageError("no data files are named");
  if (options.max_seq_length < 2) {
    throw UsageError(str_cat("max_seq_length is ", options.max_seq_length,
                             "; it must be at least 2 for a token to be predicted"));
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
  if (report.cut_inside > 0)
    text += str_cat(", ", report.cut_inside, " of them within an answer or a text, whose end is not learned");
  if (report.too_long > 0)
    text += str_cat("; ", report.too_long, " rows dropped, being longer than the sequence length");
  if (report.split > 0)
    text += str_cat("; ", report.split, " plain texts split into ", report.split_rows, " rows");
  if (report.dropped > 0)
    text += str_cat("; ", report.dropped, " rows dropped, there being nothing to learn in them");
  if (report.bad > 0) text += str_cat("; ", report.bad, " malformed rows skipped");
  for (const SourceReport& source : report.sources) {
    text += str_cat("\n  ", source.path, ": ", source.rows, " rows");
    if (source.weight != 1)
      text += str_cat(", weight ", source.weight, ": ", source.epoch_rows, " rows an epoch");
    if (!source.optional.empty()) text += str_cat("; read with them: ", source.optional);
  }
  for (const std::string& message : report.messages) text += "\n  " + message;
  return text;
}

Dataset::Dataset(const std::vector<DatasetFile>& files, const RowEncoder& encoder,
                 const DatasetOptions& options) {
  check_arguments(files, options);
  for (const DatasetFile& file : files) load(file, encoder, options);
  if (rows() == 0) refuse_no_rows(files, options.split);
}

void Dataset::refuse_no_rows(const std::vector<DatasetFile>& files, const RowSplit& split) const {
  std::string names;
  for (const DatasetFile& file : files) names += (names.empty() ? "" : ", ") + file.path;
  const std::string asked = str_cat("data.validation_fraction ", split.validation_fraction);
  if (split.part == RowPart::kValidation) {
    throw DataError(str_cat(asked, " takes no row of ", names,
                            " that can be evaluated; take a larger one, or name files in data.eval"));
  }
  if (split.part == RowPart::kTraining) {
    throw DataError(str_cat(asked, " leaves no row to learn from in ", names, ": ", to_string(report_),
                            "; take a smaller one"));
  }
  throw DataError(str_cat("there is no row to learn from in ", names, ": ", to_string(report_)));
}

void Dataset::load(const DatasetFile& file, const RowEncoder& encoder, const DatasetOptions& options) {
  Part part;
  if (options.cache && !options.on_row) {
    part.rows = cached_rows(file, encoder, options);
  } else {
    auto rows = std::make_unique<MemoryRows>();
    tokenize_file(file, encoder, options, *rows);
    part.rows = std::move(rows);
  }
  const FileReport& report = part.rows->report();
  part.first_row = rows_;
  part.first_entry = epoch_size_;
  for (const std::string& tag : report.tags) part.tags.push_back(tag_number(tag));
  rows_ += report.rows;
  longest_ = std::max(longest_, report.longest);
  add_report(report, options.rows.max_messages);
  content_.push_back({file.path, report.rows, report.digest});
  report_.sources.push_back({file.path, report.rows, file.weight, 0, report.optional});
  if (report.rows == 0) {
    const bool validation = options.split.part == RowPart::kValidation;
    report_.warnings.push_back(
        str_cat(file.path, validation ? ": gives no row to evaluate" : ": has no row to learn from"));
    return;
  }
  const double asked = file.weight * static_cast<double>(report.rows);
  const double entries = std::max(1.0, std::round(asked));
  if (entries > kMostEntries) {
    throw UsageError(
        str_cat(file.path, ": a weight of ", file.weight, " makes an epoch of ", entries, " rows"));
  }
  if (std::abs(asked - entries) > 1e-9 * entries) {
    report_.warnings.push_back(str_cat(file.path, ": a weight of ", file.weight, " asks for ", asked,
                                       " of its ", report.rows, " rows an epoch; ", entries, " are taken"));
  }
  report_.sources.back().epoch_rows = static_cast<int64_t>(entries);
  epoch_size_ += static_cast<int64_t>(entries);
  part.whole_copies = static_cast<int64_t>(entries) / report.rows;
  parts_.push_back(std::move(part));
}

void Dataset::add_report(const FileReport& file, int64_t max_messages) {
  report_.rows += file.rows;
  report_.bad += file.bad;
  report_.dropped += file.dropped;
  report_.truncated += file.truncated;
  report_.cut_inside += file.cut_inside;
  report_.too_long += file.too_long;
  report_.split += file.split;
  report_.split_rows += file.split_rows;
  report_.tokens += file.tokens;
  report_.supervised += file.supervised;
  for (const std::string& message : file.messages)
    if (std::ssize(report_.messages) < max_messages) report_.messages.push_back(message);
  report_.warnings.insert(report_.warnings.end(), file.warnings.begin(), file.warnings.end());
}

int32_t Dataset::tag_number(const std::string& name) {
  const auto [place, is_new] = tag_numbers_.try_emplace(name, static_cast<int32_t>(tags_.size()));
  if (is_new) tags_.push_back(name);
  return place->second;
}

template <class Use>
auto Dataset::in_part(int64_t row, const Use& use) const {
  PESC_CHECK(row >= 0 && row < rows_, "row ", row, " of ", rows_);
  const Part& part = *(std::ranges::upper_bound(parts_, row, {}, &Part::first_row) - 1);
  return use(part, row - part.first_row);
}

int64_t Dataset::length(int64_t row) const {
  return in_part(row, [](const Part& part, int64_t at) { return part.rows->length(at); });
}

int32_t Dataset::tag(int64_t row) const {
  return in_part(row, [](const Part& part, int64_t at) {
    return part.tags.at(static_cast<size_t>(part.rows->tag(at)));
  });
}

void Dataset::read(int64_t row, TokenRow& out) const {
  in_part(row, [&out](const Part& part, int64_t at) { part.rows->read(at, out); });
}

TokenRow Dataset::read(int64_t row) const {
  TokenRow out;
  read(row, out);
  return out;
}

int64_t Dataset::entry_row(int64_t entry, int64_t epoch, uint64_t seed) const {
  PESC_CHECK(entry >= 0 && entry < epoch_size_, "entry ", entry, " of ", epoch_size_);
  const auto after = std::ranges::upper_bound(parts_, entry, {}, &Part::first_entry);
  const Part& part = *(after - 1);
  const int64_t at = entry - part.first_entry;
  const int64_t rows = part.rows->report().rows;
  if (at < part.whole_copies * rows) return part.first_row + at % rows;
  // The share of the epoch: the first rows of a shuffled file. Stream 0 is the sampler's.
  const auto stream = static_cast<uint32_t>(after - parts_.begin());
  const Permutation shuffled(rows, seed, stream, epoch);
  return part.first_row + shuffled(at - part.whole_copies * rows);
}

}  // namespace pesc
