#include "runtime/data/packing.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "ops/core/check.h"
#include "runtime/data/permutation.h"

namespace pesc {
namespace {

// The last stream of Permutation: 0 is the sampler's, those from 1 on are the files'.
constexpr uint32_t kOrderStream = (1U << 24) - 1;

}  // namespace

PackedRows::PackedRows(int64_t epoch_size, int64_t capacity, uint64_t seed,
                       std::function<int64_t(int64_t)> length, int64_t window)
    : epoch_size_(epoch_size), capacity_(capacity), seed_(seed), length_(std::move(length)) {
  PESC_CHECK(epoch_size > 0 && capacity > 0 && window > 0, epoch_size, " conversations an epoch, rows of ",
             capacity, " tokens, windows of ", window);
  windows_ = (epoch_size + window - 1) / window;
}

PackedRows::Rows PackedRows::pack(int64_t window) const {
  const int64_t size = (epoch_size_ + windows_ - 1) / windows_;
  const int64_t epoch = window / windows_;
  const int64_t begin = window % windows_ * size;
  const int64_t end = std::min(begin + size, epoch_size_);

  std::vector<std::pair<int64_t, int64_t>> lengths;  // tokens, conversation
  lengths.reserve(static_cast<size_t>(end - begin));
  for (int64_t i = begin; i < end; ++i) {
    const int64_t conversation = epoch * epoch_size_ + i;
    const int64_t tokens = length_(conversation);
    PESC_CHECK(tokens >= 1 && tokens <= capacity_, "conversation ", conversation, " of ", tokens,
               " tokens for rows of ", capacity_);
    lengths.emplace_back(tokens, conversation);
  }
  std::ranges::stable_sort(lengths, [](const auto& a, const auto& b) { return a.first > b.first; });

  Rows rows;
  std::set<std::pair<int64_t, size_t>> room;  // of the rows that are not full: tokens left, row
  for (const auto& [tokens, conversation] : lengths) {
    const auto fits = room.lower_bound({tokens, 0});
    int64_t left = capacity_;
    size_t row = rows.size();
    if (fits == room.end()) {
      rows.emplace_back();
    } else {
      std::tie(left, row) = *fits;
      room.erase(fits);
    }
    rows[row].push_back(conversation);
    if (left > tokens) room.emplace(left - tokens, row);
  }

  const Permutation order(std::ssize(rows), seed_, kOrderStream, window);
  Rows shuffled(rows.size());
  for (size_t i = 0; i < rows.size(); ++i)
    shuffled[i] = std::move(rows[static_cast<size_t>(order(static_cast<int64_t>(i)))]);
  return shuffled;
}

void PackedRows::load(int64_t window) {
  if (loaded_ == window) return;
  rows_ = pack(window);
  loaded_ = window;
  if (window + 1 == std::ssize(first_rows_)) first_rows_.push_back(first_rows_.back() + std::ssize(rows_));
}

std::span<const int64_t> PackedRows::conversations(int64_t row) {
  PESC_CHECK(row >= 0, "packed row ", row);
  while (first_rows_.back() <= row) load(std::ssize(first_rows_) - 1);
  const auto behind = std::ranges::upper_bound(first_rows_, row);
  const int64_t window = behind - first_rows_.begin() - 1;
  load(window);
  return rows_[static_cast<size_t>(row - first_rows_[static_cast<size_t>(window)])];
}

int64_t PackedRows::first_row(int64_t epoch) {
  PESC_CHECK(epoch >= 0, "epoch ", epoch);
  const auto window = static_cast<size_t>(epoch * windows_);
  while (first_rows_.size() <= window) load(std::ssize(first_rows_) - 1);
  return first_rows_[window];
}

}  // namespace pesc
