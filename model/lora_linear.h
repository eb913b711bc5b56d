// Linears with LoRA under tensor and sequence parallelism (Hu et al., 2021; Korthikanti et al., 2022).
//   y = W x + b + B a,   a = (alpha/r) A dropout(x)
// S tokens of the slice, P gathered tokens, H hidden, R stacked LoRA columns.
//
// Column-parallel (q,k,v or gate,up): x is the rank's slice. `a` is taken on the slice and gathered with x,
// so that no tp rank repeats the work of another; the backward reduce-scatters da, and A's gradient comes
// from the slice alone. Row-parallel (o or down): x is the rank's columns of all tokens; the partial sums of
// W x and A x are reduce-scattered and B is applied on the slice. Gradients are added to.
#pragma once

#include "model/parameters.h"
#include "model/pass.h"

namespace pesc {

// x [S, H] -> y [P, out] written; a [P, R] kept for the backward.
void column_forward(const Pass& pass, const ColumnLinears& w, const Dropout& dropout, const Tensor& x,
                    const Tensor& y, const Tensor& a);
// dy [P, out], x as in the forward -> dx [S, H] written. Uses ws.gathered, ws.lora_*.
void column_backward(const Pass& pass, const ColumnLinears& w, const Dropout& dropout, const Tensor& dy,
                     const Tensor& x, const Tensor& a, const Tensor& dx);

// x [P, in] -> y [S, H] written; a [S, r] kept for the backward. Uses ws.gathered.
void row_forward(const Pass& pass, const RowLinear& w, const Dropout& dropout, const Tensor& x,
                 const Tensor& y, const Tensor& a);
// dy [S, H], x as in the forward -> dx [P, in] written.
void row_backward(const Pass& pass, const RowLinear& w, const Dropout& dropout, const Tensor& dy,
                  const Tensor& x, const Tensor& a, const Tensor& dx);

}  // namespace pesc
