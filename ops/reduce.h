// Data movement and sums: fills, copies, additions, gathers, sums for norms. C columns.
#pragma once

#include "ops/core/arena.h"
#include "ops/core/device.h"

namespace pesc {

void fill_zero(Stream& stream, const Tensor& x);                  // any dtype, any row stride
void copy(Stream& stream, const Tensor& from, const Tensor& to);  // same shape and dtype, any row strides
// to = from, F32 or BF16 each, rounded to nearest even; same shape, any row strides.
void cast(Stream& stream, const Tensor& from, const Tensor& to);
void add(Stream& stream, const Tensor& x, const Tensor& y);          // y += x, F32, any row strides
void add_bias(Stream& stream, const Tensor& bias, const Tensor& y);  // y [T, C] += bias [1, C]
void bias_backward(Stream& stream, const Tensor& dy,
                   const Tensor& dbias);  // dbias [1, C] += column sums of dy [T, C]

// out [n, C] = rows index[i] of in; index [1, n] I32. out is written.
void gather_rows(Stream& stream, const Tensor& in, const Tensor& index, const Tensor& out);
// Row index[i] of out += row i of in [n, C], in rising order of i; index [1, n] I32.
void scatter_add_rows(Stream& stream, const Tensor& in, const Tensor& index, const Tensor& out);

// out [1, 1] F64 += the sum of squares of x, taken in F64 in a fixed order.
void sum_squares(Stream& stream, const Tensor& x, const Tensor& out);
// out [1, 1] F64 += the sum of x, taken in F64 in a fixed order.
void sum(Stream& stream, const Tensor& x, const Tensor& out);

}  // namespace pesc
