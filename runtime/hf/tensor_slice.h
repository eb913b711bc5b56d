// A slice of a tensor of a safetensors file as float32.
#pragma once

#include <cstdint>

#include "runtime/hf/safetensors.h"

namespace pesc {

// Rows [row, row + rows) and columns [col, col + cols) of a matrix; a tensor of shape [n] is [1, n].
struct TensorSlice {
  int64_t row = 0, rows = 0, col = 0, cols = 0;
};

// Writes the slice to `to` as float32, contiguous [rows, cols]. REQUIRES: `entry` is of `file`, has one or two dimensions and
// the slice within them. Throws DataError naming file and tensor where it is not F32, BF16 or F16, or where a value is not
// finite; `remedy` ends that message. Returns the bytes that the slice occupies in the file.
int64_t read_tensor_slice(const SafetensorsFile& file, const SafetensorsEntry& entry,
                          const TensorSlice& slice, const char* remedy, float* to);

}  // namespace pesc
