// Packed rows (data.packing: BEST_FIT): rows of up to `capacity` tokens that are filled with whole
// conversations.
//
// Conversations are numbered along the sampler's stream (runtime/data/sampler.h). Those of an epoch are
// divided into windows of about equal size, and each window is packed best-fit decreasing: its conversations,
// longest first and of one length in their order, each go into the row with the least room that holds them, or
// into a new row. So a packed row has conversations of one epoch. The first rows of a window have its longest
// conversations; therefore the rows of a window are shuffled.
//
// The packed rows are numbered along a stream of their own, window after window. They are a pure function of
// seed and lengths: no layout enters, and a run that resumes at a packed row finds the same rows.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace pesc {

inline constexpr int64_t kPackingWindow = 8192;  // conversations, at most

class PackedRows {
 public:
  // `length` returns the number of tokens, from 1 to `capacity`, of a conversation of the stream.
  PackedRows(int64_t epoch_size, int64_t capacity, uint64_t seed, std::function<int64_t(int64_t)> length,
             int64_t window = kPackingWindow);

  // The conversations of packed row `row`, in the order of their places in it. Valid until the next call.
  [[nodiscard]] std::span<const int64_t> conversations(int64_t row);
  // The number of the first packed row of an epoch. Packs the epochs before it, once: some 0.5 s for a
  // million conversations.
  [[nodiscard]] int64_t first_row(int64_t epoch);

 private:
  using Rows = std::vector<std::vector<int64_t>>;
  [[nodiscard]] Rows pack(int64_t window) const;
  void load(int64_t window);  // into rows_

  int64_t epoch_size_, capacity_;
  uint64_t seed_;
  std::function<int64_t(int64_t)> length_;
  int64_t windows_;                     // of an epoch
  std::vector<int64_t> first_rows_{0};  // of the windows that were packed, and of the one behind them
  Rows rows_;                           // of the window that was packed last
  int64_t loaded_ = -1;                 // its number, counted over all epochs
};

}  // namespace pesc
