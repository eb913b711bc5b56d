// The order of the data: an infinite stream of row numbers, a pure function of (seed, epoch, index) and
// independent of the layout. Global index g is entry permutation_epoch(g % n) of epoch g / n. Each step takes
// the next `global_batch_size` indices; `consumed_samples`, which a checkpoint keeps, is the number taken so
// far. Micro-batch m takes the step's m-th `micro_batch_rows` indices (the last one the rest). The
// data-parallel ranks split these in equal pieces; the last pieces may be short or empty. A step may cross
// the end of an epoch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/batch.h"
#include "parallel/shard_spec.h"
#include "runtime/data/dataset.h"

namespace pesc {

enum class RowOrder {
  kShuffled,
  kAsRead,  // evaluation: each row once, in the files' order
};

class Sampler {
 public:
  Sampler(int64_t epoch_size, uint64_t seed, RowOrder order = RowOrder::kShuffled);
  // Only these entries of [0, epoch_size), in this order; an epoch has entries.size() global indices.
  Sampler(int64_t epoch_size, std::vector<int64_t> entries);

  struct Place {
    int64_t epoch = 0;
    int64_t entry = 0;  // in [0, epoch_size)
    friend bool operator==(const Place&, const Place&) = default;
  };
  [[nodiscard]] Place place(int64_t global_index) const;
  [[nodiscard]] int64_t row(int64_t global_index) const { return place(global_index).entry; }
  // The number of rows of `epochs` epochs, which may be a fraction (see share_of). No row appears more than
  // ceil(epochs) times in them.
  [[nodiscard]] int64_t rows_for(double epochs) const;

  [[nodiscard]] int64_t epoch_size() const { return n_; }
  [[nodiscard]] uint64_t seed() const { return seed_; }

 private:
  int64_t n_;
  uint64_t seed_;
  RowOrder order_;
  std::vector<int64_t> entries_;  // empty: all
};

// Chooses `limit` of the rows of files with these sizes; rows are numbered over all files. Each file gives a
// share in proportion to its size, evenly spread over its rows, and at least one unless it is empty (so that
// more than `limit` rows may be chosen). All rows where `limit` is 0 or at least their number.
[[nodiscard]] std::vector<int64_t> rows_of_every_file(const std::vector<int64_t>& sizes, int64_t limit);
// What is to be said of a limit that is above what the files hold; empty where it is not.
[[nodiscard]] std::string beyond_all_rows(const std::vector<int64_t>& sizes, int64_t limit);

// How the global indices of one step are divided over micro-batches and data-parallel ranks. Every rank has
// the same number of micro-batches; its share of one may be empty.
struct BatchPlan {
  int64_t global_batch_size = 0;  // rows per step, over all ranks
  int64_t micro_batch_rows = 0;   // rows per micro-batch, over all ranks
  int dp = 1;

  [[nodiscard]] int64_t micro_batches() const {
    return (global_batch_size + micro_batch_rows - 1) / micro_batch_rows;
  }
  // The global indices of micro-batch `micro` of the step at `consumed_samples`, and those of one dp rank.
  // Indices from `end` on are left out (the end of an evaluation).
  [[nodiscard]] Range micro_range(int64_t consumed_samples, int64_t micro, int64_t end = INT64_MAX) const;
  [[nodiscard]] Range local_range(int64_t consumed_samples, int64_t micro, int dp_rank,
                                  int64_t end = INT64_MAX) const;
};

// A dp rank's share of a micro-batch: the conversations of its rows one after another, with no padding.
// `host.samples` of a token is the global index of its conversation, which keys the dropout masks;
// `host.targets` are the labels.
struct LocalBatch {
  HostBatch host;
  std::vector<int32_t> tags;  // [T] the dataset tag of each token's conversation, in Dataset::tags()
  [[nodiscard]] int64_t conversations() const { return static_cast<int64_t>(host.starts.size()) - 1; }
};

// Puts the conversation of a global index behind those of the batch.
void add_conversation(const Dataset& dataset, const Sampler& sampler, int64_t index, LocalBatch& batch);

// The rows of global indices [first, first + count); count may be 0.
// Each is one conversation (packed rows: runtime/data/row_stream.h).
[[nodiscard]] LocalBatch make_local_batch(const Dataset& dataset, const Sampler& sampler, int64_t first,
                                          int64_t count);

}  // namespace pesc
