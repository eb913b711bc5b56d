// Makes the codes of quantised frozen weights on their way into device memory.
//
// A tensor is quantised as a whole: the scale of an FP8 row is of the whole row, and NF4's blocks and offset are
// of the whole tensor. So a rank reads more of the tensor than it holds (whole rows in FP8, all of them in NF4),
// a slice at a time, and the codes, scales and dequantised values are the same on every layout.
//
// The slices are quantised on the stream's device. Besides the codes, it holds one slice of a tensor and NF4's
// absmaxes of all of it, a float32 for 64 values: a model whose float32 values neither the host nor the device
// could hold is quantised tensor by tensor.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/frozen_linear.h"
#include "model/weight_source.h"
#include "parallel/shard_spec.h"

namespace pesc {

// Reads whole rows [row, row + rows) of a tensor as float32, contiguous.
using ReadRows = std::function<void(int64_t row, int64_t rows, float* to)>;
// Writes whole rows [row, row + to.rows) of a tensor to `to`: F32, contiguous, in memory of the stream's device.
using FillRows = std::function<void(int64_t row, const Tensor& to)>;

// The largest number of values of a slice; a slice has at least one row.
[[nodiscard]] int64_t quantized_slice_values(const Stream& stream);

// Writes this rank's piece of the tensor to `to`. REQUIRES: a quantised format. Throws DataError, naming the
// tensor and the place, for a value that is not finite, also in what other ranks hold of the rows that are read.
void write_quantized(Stream& stream, const ShardSpec& spec, const FillRows& fill, const FrozenLinear& to);
void write_quantized(Stream& stream, const ShardSpec& spec, const ReadRows& read, const FrozenLinear& to);

// The same of a tensor that the source holds quantised in the format of `to`: nothing is quantised, and this
// rank's piece alone is read (of NF4 that is computed in FP8 whole rows). Throws DataError as the source does.
void copy_quantized(Stream& stream, const ShardSpec& spec, WeightSource& source, const FrozenLinear& to);

// Throws DataError that names the tensor and the place of value `at` of `values`, which begin with row `row`.
[[noreturn]] void refuse_not_finite(const ShardSpec& tensor, FrozenFormat format, int64_t row,
                                    const float* values, int64_t at);
// Writes a scale for each row of NF4: that of FP8 codes of its dequantised values. REQUIRES: whole rows of the tensor;
// `values`, which is overwritten, has room for them.
void fp8_scales_of_nf4(Stream& host, const Nf4Matrix& whole, std::vector<float>& values, float* scales);

}  // namespace pesc
