#include "runtime/data/dataset.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "ops/core/check.h"
#include "runtime/chat/chat_template.h"
#include "runtime/data/permutation.h"
#include "runtime/data/tags.h"

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
    text += str_cat("\n  ", source.path, ": ", source.rows, " rows, weight ", source.weight, ": ",
                    source.epoch_rows, " rows an epoch");
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
  tokens_.shrink_to_fit();
  supervised_.shrink_to_fit();
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

// Of one file: rows that the tokenizer cannot say as they are written.
struct Dataset::Losses {
  int64_t rows = 0;
  int64_t unknown = 0;  // rows
  int64_t changed = 0;  // rows, others than those
  std::string unknown_example, changed_example;

  void add(const RowLosses& row, const std::string& where) {
    ++rows;
    if (row.unknown > 0) {
      if (unknown++ == 0) unknown_example = str_cat(where, ": ", row.example);
    } else if (row.changed) {
      if (changed++ == 0) changed_example = str_cat(where, ": ", row.example);
    }
  }
  void tell(const std::string& path, std::vector<std::string>& warnings) const {
    if (unknown > 0) {
      warnings.push_back(str_cat(path, ": ", unknown, " of ", rows,
                                 " rows have characters that the tokenizer has no piece "
                                 "for, and that are learned as unknown (",
                                 unknown_example, "); no model with this tokenizer can write them"));
    }
    if (changed > 0) {
      warnings.push_back(str_cat(
          path, ": ", changed, " of ", rows,
          " rows do not come back from the tokenizer as they are "
          "written (",
          changed_example, "); what comes back is what is learned, and what exact match compares with"));
    }
  }
};

namespace {

std::string how_to_skip(const RowOptions& options) {
  return options.policy_field.empty() ? ""
                                      : str_cat(" (", options.policy_field, ": SKIP leaves such rows out)");
}

// Empty for a row from which something is learned.
std::string why_dropped(const Row& row, const FittedRow& fitted, const RowLosses& lost,
                        int64_t max_seq_length) {
  if (lost.unsayable)
    return str_cat("the tokenizer has no token for an answer (", lost.example, "); dropped");
  const Sample& sample = fitted.samples.front();
  if (sample.supervised > 0) return "";
  if (!row.turns.empty() && std::ranges::none_of(row.turns, &Turn::learned))
    return "none of its answers is to be learned (\"weight\" or \"train\"); dropped";
  if (row.chat && !sample.truncated)
    return "the chat template shows none of its answers that are to be learned; dropped";
  return str_cat("nothing to learn is left of the row in its first ", max_seq_length,
                 " tokens; dropped (a larger max_seq_length would keep it)");
}

}  // namespace

void Dataset::load(const DatasetFile& file, const RowEncoder& encoder, const DatasetOptions& options) {
  Part part;
  part.first_row = rows();
  part.first_entry = epoch_size_;
  Losses losses;
  const LengthRules rules{options.max_seq_length, options.on_long_row, options.long_text};
  RowOptions reading = options.rows;
  reading.columns = file.columns;
  const RowsReport read = for_each_row(file.path, reading, [&](Row&& row, const std::string& where) {
    if (!options.split.takes(row)) return;
    row.tag = tag_of(file.tag, row.tag, file.path);
    RowLosses lost;
    FittedRow fitted;
    try {
      fitted = fit_row(encoder, row, rules, &lost);
    } catch (const TemplateError& error) {
      const std::string what = str_cat(where, ": ", error.what());
      if (!error.of_row) throw;
      if (options.rows.on_bad_row == OnBadRow::kFail) throw DataError(what + how_to_skip(options.rows));
      ++report_.bad;
      note(what + "; skipped", options);
      return;
    }
    if (fitted.samples.empty() && !lost.unsayable) {
      ++report_.too_long;
      note(str_cat(where, ": the row has more than ", options.max_seq_length,
                   " tokens; dropped (data.on_long_row: DROP)"),
           options);
      return;
    }
    if (const std::string why = why_dropped(row, fitted, lost, options.max_seq_length); !why.empty()) {
      ++report_.dropped;
      note(str_cat(where, ": ", why), options);
      return;
    }
    if (options.on_row) options.on_row(row);
    losses.add(lost, where);
    report_.cut_inside += fitted.cut_inside ? 1 : 0;
    report_.split += fitted.split ? 1 : 0;
    report_.split_rows += fitted.split ? std::ssize(fitted.samples) : 0;
    for (const Sample& sample : fitted.samples) add(sample, tag_number(row.tag));
  });
  // What concerns the file is said once, with the rows that are trained on.
  const bool validation = options.split.part == RowPart::kValidation;
  if (!validation) {
    report_.bad += read.bad;
    report_.dropped += read.empty;
    for (const std::string& message : read.messages) note(message, options);
    if (!read.unused_warning.empty()) report_.warnings.push_back(read.unused_warning);
  }
  losses.tell(file.path, report_.warnings);

  part.rows = rows() - part.first_row;
  content_.push_back({file.path, part.rows, digest_from(part.first_row)});
  report_.sources.push_back({file.path, part.rows, file.weight, 0, read.fields.optional.text()});
  if (part.rows == 0) {
    report_.warnings.push_back(
        str_cat(file.path, validation ? ": gives no row to evaluate" : ": has no row to learn from"));
    return;
  }
  const double asked = file.weight * static_cast<double>(part.rows);
  const double entries = std::max(1.0, std::round(asked));
  if (entries > kMostEntries) {
    throw UsageError(
        str_cat(file.path, ": a weight of ", file.weight, " makes an epoch of ", entries, " rows"));
  }
  if (std::abs(asked - entries) > 1e-9 * entries) {
    report_.warnings.push_back(str_cat(file.path, ": a weight of ", file.weight, " asks for ", asked,
                                       " of its ", part.rows, " rows an epoch; ", entries, " are taken"));
  }
  report_.sources.back().epoch_rows = static_cast<int64_t>(entries);
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
  const auto [place, is_new] = tag_numbers_.try_emplace(name, static_cast<int32_t>(tags_.size()));
  if (is_new) tags_.push_back(name);
  return place->second;
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
