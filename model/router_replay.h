// Replaying the expert choices of a recorded run, or recording those of this one (a test mode).
#pragma once

#include <cstdint>
#include <vector>

#include "model/batch.h"

namespace pesc {

// `experts` are [slice_real, k] expert numbers of one layer, in falling-logit order.
class RouterReplay {
 public:
  virtual ~RouterReplay() = default;
  // Fills `experts` with the recorded choice and returns true, or returns false.
  virtual bool replay(const Batch& batch, int64_t layer, std::vector<int32_t>& experts) = 0;
  virtual void record(const Batch& batch, int64_t layer, const std::vector<int32_t>& experts) = 0;
};

}  // namespace pesc
