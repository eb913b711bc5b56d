// How many steps of a run have updated the weights, and how many in a row have not. Saved in checkpoints, so
// that a restart continues the count.
#pragma once

#include <cstdint>
#include <string>

namespace pesc {

// Under which a checkpoint keeps UpdateCount::save().
inline constexpr const char* kUpdates = "updates";

// A run ends when this many batches in a row were left out (train.on_nonfinite: SKIP, train.on_loss_spike:
// SKIP).
inline constexpr int64_t kMostSkippedInARow = 20;

class UpdateCount {
 public:
  void count(bool updated) {
    skipped_ = updated ? 0 : skipped_ + 1;
    updates_ += updated ? 1 : 0;
  }
  [[nodiscard]] bool none() const { return updates_ == 0; }
  [[nodiscard]] int64_t skipped_in_a_row() const { return skipped_; }

  [[nodiscard]] std::string save() const;
  // Throws DataError unless save() wrote the text. Empty, as in the checkpoints of an older pesc: all of the
  // `steps` count as updates.
  void load(const std::string& text, int64_t steps);

 private:
  int64_t updates_ = 0;
  int64_t skipped_ = 0;  // in a row
};

}  // namespace pesc
