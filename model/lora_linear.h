// Linears with LoRA under tensor and sequence parallelism (Hu et al., 2021; Korthikanti et al., 2022).
//   y = W x + b + B a,   a = (alpha/r) A dropout(x)
// S tokens of the slice, P gathered tokens, H hidden, R stacked LoRA columns.
//
// Column-parallel (q,k,v or gate,up): x is the rank's slice. `a` is taken on the slice and gathered with x,
// so that no tp rank repeats the work of another; the backward reduce-scatters da, and A's gradient comes
// from the slice alone. Row-parallel (o or down): x is the rank's columns of all tokens; the partial sums of
// W x and A x are reduce-scattered and B is applied on the slice. Gradients are added to.
//
// dropout(x) and what the path through A gives to the gradient of x are the business of the operation that
// makes x (a norm, SwiGLU): here they come in and go out. Where W and B stand side by side (frozen_linear.h)
// so do x and a, and their gradients.
#pragma once

#include <functional>

#include "model/frozen_linear.h"
#include "model/parameters.h"
#include "model/pass.h"
#include "ops/lora.h"

namespace pesc {

// Columns beside the input of a row-parallel linear: on one rank alone, since several sum `a` up first.
[[nodiscard]] inline int64_t columns_beside_input(const RowLinear& w, int tp) {
  return tp == 1 ? w.joined_columns() : 0;
}
// A second buffer for dropout(x) where it is needed: with LoRA and a rate.
[[nodiscard]] inline bool drops(int64_t lora_columns, const Dropout& mask) {
  return lora_columns > 0 && mask.rate > 0;
}

[[nodiscard]] inline float lora_scale(const Pass& pass) {
  return static_cast<float>(pass.pesc.lora.alpha / static_cast<double>(pass.pesc.lora.rank));
}
// The columns of the stacked activations a [any, R] that are one linear's.
[[nodiscard]] inline Tensor lora_part(const ColumnLinears::Part& part, const Tensor& a) {
  return a.col_range(part.lora_begin, part.lora_begin + part.lora_b.cols);
}

// Work that needs nothing of the others' tokens, and runs while they are gathered.
using Meanwhile = std::function<void()>;

// x [S, H] with joined_columns() beside it; dropped [S, H] = dropout(x), or x itself -> y [P, out] written;
// a [P, R] kept for the backward.
void column_forward(const Pass& pass, const ColumnLinears& w, const Beside& x, const Tensor& dropped,
                    const Tensor& y, const Tensor& a, const Meanwhile& meanwhile = {});
// dy [P, out], x [S, H] and dropped as in the forward (x with trained weights alone) -> dx [S, H] written,
// with joined_columns() beside it, and what comes through A, before the mask: through_a [S, H] written.
// Returns that, or an absent tensor without LoRA. Uses ws.gathered, ws.lora_*.
Tensor column_backward(const Pass& pass, const ColumnLinears& w, const Tensor& dy, const Tensor& x,
                       const Tensor& dropped, const Tensor& a, const Beside& dx, const Tensor& through_a);

// x [P, in] with columns_beside_input() beside it; dropped [P, in] as above; residual [S, H] or absent
// -> y [S, H] = W x + B a + residual written; a [S, r] kept for the backward. Uses ws.gathered.
void row_forward(const Pass& pass, const RowLinear& w, const Beside& x, const Tensor& dropped,
                 const Tensor& residual, const Tensor& y, const Tensor& a);
// dy [S, H], x [P, in] as in the forward (with trained weights alone) -> dx [P, in] written, with
// joined_columns() or nothing beside it. Returns the way back through A, which is left to the caller.
[[nodiscard]] LoraBranch row_backward(const Pass& pass, const RowLinear& w, const Dropout& dropout,
                                      const Tensor& dy, const Tensor& x, const Tensor& a, const Beside& dx);

}  // namespace pesc
