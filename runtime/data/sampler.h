// The order of the data: an endless stream of row numbers, a pure function of (seed, epoch, index) that no
// layout enters. Global index g is entry permutation_epoch(g % n) of epoch g / n. Step after step takes
// `global_batch` indices; the cursor, which a checkpoint keeps, is the number taken so far. Micro-batch m of
// a step takes `micro_batch` of the step's (the last one what is left), and the data-parallel ranks split
// these in equal pieces of which the last may be short or empty. A step that crosses the end of an epoch runs
// on into the next.
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
  kAsRead,  // held-out sets: each row once, in the files' order
};

class Sampler {
 public:
  Sampler(int64_t epoch_size, uint64_t seed, RowOrder order = RowOrder::kShuffled);
  // These entries of [0, epoch_size) alone, in this order; an epoch has as many global indices as they are.
  Sampler(int64_t epoch_size, std::vector<int64_t> entries);

  struct Place {
    int64_t epoch = 0;
    int64_t entry = 0;  // in [0, epoch_size)
    friend bool operator==(const Place&, const Place&) = default;
  };
  [[nodiscard]] Place place(int64_t global_index) const;
  [[nodiscard]] int64_t row(int64_t global_index) const { return place(global_index).entry; }
  // Rows in `epochs` epochs (which may be a fraction; see share_of): the stream's first so many. No row comes
  // more often in them than `epochs`, rounded up, says; the last step of a run may have fewer rows than
  // others.
  [[nodiscard]] int64_t rows_for(double epochs) const;
  // Steps that see them: ceil(rows / global_batch).
  [[nodiscard]] int64_t steps_for(double epochs, int64_t global_batch) const;

  [[nodiscard]] int64_t epoch_size() const { return n_; }
  [[nodiscard]] uint64_t seed() const { return seed_; }

 private:
  int64_t n_;
  uint64_t seed_;
  RowOrder order_;
  std::vector<int64_t> entries_;  // empty: all
};

// `limit` of the rows that files of these sizes hold, numbered from the first file's on: from each file its
// share by size, at least one of a file that has rows (so that more than `limit` may come out where there are
// more files), evenly spread over it. All rows where `limit` is 0 or not less than their number.
[[nodiscard]] std::vector<int64_t> rows_of_every_file(const std::vector<int64_t>& sizes, int64_t limit);
// What is to be said of a limit that is above what the files hold; empty where it is not.
[[nodiscard]] std::string beyond_all_rows(const std::vector<int64_t>& sizes, int64_t limit);

// How the global indices of one step fall to micro-batches and data-parallel ranks. Every rank has the same
// number of micro-batches; its share of one may be empty.
struct BatchPlan {
  int64_t global_batch = 0;  // rows per step, over all ranks
  int64_t micro_batch = 0;   // rows per micro-batch, over all ranks
  int dp = 1;

  [[nodiscard]] int64_t micro_batches() const { return (global_batch + micro_batch - 1) / micro_batch; }
  // Global indices of micro-batch `micro` of the step at `cursor`: all of them, and those of one dp rank.
  // Nothing at or above `end` (an evaluation's last rows; by default there is no end).
  [[nodiscard]] Range micro_range(int64_t cursor, int64_t micro, int64_t end = INT64_MAX) const;
  [[nodiscard]] Range local_range(int64_t cursor, int64_t micro, int dp_rank, int64_t end = INT64_MAX) const;
};

// A dp rank's share of a micro-batch: its rows one after another, with no padding. `host.samples` of a token
// is the global index of its row, which keys the dropout masks; `host.targets` are the labels.
struct LocalBatch {
  HostBatch host;
  std::vector<int32_t> tags;  // [T] the dataset tag of each token's row, in Dataset::tags()
  [[nodiscard]] int64_t rows() const { return static_cast<int64_t>(host.starts.size()) - 1; }
};

// The rows of global indices [first, first + count); count may be 0.
[[nodiscard]] LocalBatch make_local_batch(const Dataset& dataset, const Sampler& sampler, int64_t first,
                                          int64_t count);

// Over all dp ranks, from the data alone: what rank-local sums must add up to.
[[nodiscard]] int64_t supervised_tokens(const Dataset& dataset, const Sampler& sampler, int64_t first,
                                        int64_t count);

}  // namespace pesc
