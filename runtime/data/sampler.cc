#include "runtime/data/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "ops/core/check.h"
#include "runtime/data/permutation.h"
#include "runtime/data/share.h"

namespace pesc {

Sampler::Sampler(int64_t epoch_size, uint64_t seed, RowOrder order)
    : n_(epoch_size), seed_(seed), order_(order) {
  PESC_CHECK(epoch_size > 0, "a sampler over ", epoch_size, " rows");
}

Sampler::Sampler(int64_t epoch_size, std::vector<int64_t> entries)
    : n_(epoch_size), seed_(0), order_(RowOrder::kAsRead), entries_(std::move(entries)) {
  PESC_CHECK(!entries_.empty() && std::ssize(entries_) <= epoch_size, entries_.size(), " entries of ",
             epoch_size);
}

Sampler::Place Sampler::place(int64_t global_index) const {
  PESC_CHECK(global_index >= 0, "global index ", global_index);
  if (const int64_t chosen = std::ssize(entries_); chosen > 0)
    return {global_index / chosen, entries_[static_cast<size_t>(global_index % chosen)]};
  const Place at{global_index / n_, global_index % n_};
  if (order_ == RowOrder::kAsRead) return at;
  return {at.epoch, Permutation(n_, seed_, 0, at.epoch)(at.entry)};
}

int64_t Sampler::rows_for(double epochs) const {
  PESC_CHECK(std::isfinite(epochs) && epochs >= 0, epochs, " epochs");
  return share_of(epochs, n_);
}

std::string beyond_all_rows(const std::vector<int64_t>& sizes, int64_t limit) {
  const int64_t total = std::reduce(sizes.begin(), sizes.end(), int64_t{0});
  if (limit <= total) return "";
  return str_cat("train.max_eval_samples asks for ", limit, " rows at a time, but there are ", total,
                 " to evaluate: all of them are taken");
}

std::vector<int64_t> rows_of_every_file(const std::vector<int64_t>& sizes, int64_t limit) {
  const int64_t total = std::reduce(sizes.begin(), sizes.end(), int64_t{0});
  const int64_t wanted = limit <= 0 ? total : std::min(limit, total);
  // One of each file, and what is left by the largest remainders of what more each may give.
  std::vector<int64_t> share(sizes.size());
  int64_t taken = 0;
  for (size_t f = 0; f < sizes.size(); ++f) taken += share[f] = std::min<int64_t>(sizes[f], 1);
  const auto left = std::max<int64_t>(wanted - taken, 0);
  const int64_t rest = total - taken;
  std::vector<std::pair<double, size_t>> remainders;  // negative, so that the largest comes first
  for (size_t f = 0; f < sizes.size() && rest > 0; ++f) {
    const double exact =
        static_cast<double>(left) * static_cast<double>(sizes[f] - share[f]) / static_cast<double>(rest);
    const auto whole = std::min(static_cast<int64_t>(exact), sizes[f] - share[f]);
    share[f] += whole;
    taken += whole;
    remainders.emplace_back(static_cast<double>(whole) - exact, f);
  }
  std::sort(remainders.begin(), remainders.end());
  for (size_t i = 0; taken < wanted; i = (i + 1) % remainders.size()) {
    const size_t f = remainders[i].second;
    if (share[f] == sizes[f]) continue;
    ++share[f];
    ++taken;
  }
  std::vector<int64_t> rows;
  int64_t first = 0;
  for (size_t f = 0; f < sizes.size(); first += sizes[f++]) {
    for (int64_t i = 0; i < share[f]; ++i) rows.push_back(first + i * sizes[f] / share[f]);
  }
  return rows;
}

Range BatchPlan::micro_range(int64_t consumed_samples, int64_t micro, int64_t end) const {
  PESC_CHECK(micro >= 0 && micro < micro_batches(), "micro-batch ", micro, " of ", micro_batches());
  const int64_t stop = std::min(consumed_samples + global_batch_size, end);
  const int64_t begin = std::min(consumed_samples + micro * micro_batch_rows, stop);
  return {begin, std::min(begin + micro_batch_rows, stop)};
}

Range BatchPlan::local_range(int64_t consumed_samples, int64_t micro, int dp_rank, int64_t end) const {
  PESC_CHECK(dp_rank >= 0 && dp_rank < dp, "dp rank ", dp_rank, " of ", dp);
  const Range all = micro_range(consumed_samples, micro, end);
  const Range part = split_range(all.size(), dp, dp_rank);
  return {all.begin + part.begin, all.begin + part.end};
}

void add_conversation(const Dataset& dataset, const Sampler& sampler, int64_t index, LocalBatch& batch) {
  const Sampler::Place at = sampler.place(index);
  const int64_t row = dataset.entry_row(at.entry, at.epoch, sampler.seed());
  const TokenRow read = dataset.read(row);
  const std::vector<int32_t>& tokens = read.tokens;
  const std::vector<uint8_t>& supervised = read.supervised;
  HostBatch& host = batch.host;
  const size_t begin = host.tokens.size();
  const size_t end = begin + tokens.size();
  host.tokens.insert(host.tokens.end(), tokens.begin(), tokens.end());
  for (size_t t = 0; t < tokens.size(); ++t) {
    host.targets.push_back(supervised[t] != 0 ? tokens[t + 1] : kUnsupervised);
  }
  host.positions.resize(end);
  std::iota(host.positions.begin() + static_cast<std::ptrdiff_t>(begin), host.positions.end(), 0);
  host.samples.resize(end, index);
  batch.tags.resize(end, dataset.tag(row));
  PESC_CHECK(end <= INT32_MAX, "a batch of ", end, " tokens");
  host.starts.push_back(static_cast<int32_t>(end));
}

LocalBatch make_local_batch(const Dataset& dataset, const Sampler& sampler, int64_t first, int64_t count) {
  PESC_CHECK(sampler.epoch_size() == dataset.epoch_size() && count >= 0, count, " rows of a sampler over ",
             sampler.epoch_size(), " entries, the data having ", dataset.epoch_size());
  LocalBatch batch;
  for (int64_t index = first; index < first + count; ++index)
    add_conversation(dataset, sampler, index, batch);
  return batch;
}

}  // namespace pesc
