// Two checkpoints, tensor by tensor, whatever layouts saved them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"

namespace pesc {

struct TensorComparison {
  enum class Verdict { kEqual, kDifferent, kOnlyInFirst, kOnlyInSecond, kOtherShape };
  std::string name;
  std::string kind;  // "param", "exp_avg", "exp_avg_sq"
  Verdict verdict = Verdict::kEqual;
  int64_t rows = 0, cols = 0;  // in the first; in the second where it is only there
  int64_t second_rows = 0, second_cols = 0;
  // Of kDifferent, elements a of the first and b of the second:
  int64_t differing = 0;    // elements whose bits differ
  double max_absolute = 0;  // max |a - b|; infinite where one of the two is not finite and the bits differ
  double max_relative = 0;  // max |a - b| / max |b|, the maxima over the tensor; infinite where all b are 0
};

// Every tensor of either checkpoint, ordered by name and kind. kEqual means the same bits in every element.
// At most two times `band_bytes` of tensor data, and the file reader's buffer, are in memory at a time.
// Throws IoError.
[[nodiscard]] std::vector<TensorComparison> compare_checkpoints(FileSystem& files, Stream& stream,
                                                                const LoadedCheckpoint& first,
                                                                const LoadedCheckpoint& second,
                                                                int64_t band_bytes = int64_t{16} << 20);

}  // namespace pesc
