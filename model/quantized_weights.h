// Makes the codes of quantised frozen weights on their way into device memory.
//
// A tensor is quantised as a whole, on the host: the scale of an FP8 row is of the whole row, and NF4's blocks
// and offset are of the whole tensor. So a rank reads more of the tensor than it holds (whole rows in FP8, all of
// them in NF4), a slice at a time, and the codes, scales and dequantised values are the same on every layout.
#pragma once

#include <cstdint>
#include <functional>

#include "model/frozen_linear.h"
#include "model/weight_source.h"
#include "parallel/shard_spec.h"

namespace pesc {

// Reads whole rows [row, row + rows) of a tensor as float32, contiguous.
using ReadRows = std::function<void(int64_t row, int64_t rows, float* to)>;

// Writes this rank's piece of the tensor to `to`. REQUIRES: a quantised format. Throws DataError, naming the
// tensor and the place, for a value that is not finite, also in what other ranks hold of the rows that are read.
void write_quantized(Stream& stream, const ShardSpec& spec, const ReadRows& read, const FrozenLinear& to);

// The same of a tensor that the source holds quantised in the format of `to`: nothing is quantised, and this
// rank's piece alone is read (of NF4 that is computed in FP8 whole rows). Throws DataError as the source does.
void copy_quantized(Stream& stream, const ShardSpec& spec, WeightSource& source, const FrozenLinear& to);

}  // namespace pesc
