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

// The same four in steps, for a chain of them that goes over the gathered tokens block by block
// (shared_ffn.h). A step without a block handles all tokens. Blocks go in order, each through the whole
// chain.

// Some of the gathered tokens.
struct TokenBlock {
  Range rows;
  int64_t tokens = 0;  // P: all of them
  [[nodiscard]] static TokenBlock all(int64_t tokens) { return {{0, tokens}, tokens}; }
  [[nodiscard]] bool first() const { return rows.begin == 0; }
  [[nodiscard]] bool last() const { return rows.end == tokens; }
  [[nodiscard]] Tensor of(const Tensor& t) const { return t.row_range(rows.begin, rows.end); }
};

struct ColumnForward {
  Beside x;        // [P, H] gathered, with joined_columns() beside it; may stand in ws.gathered
  Tensor a_slice;  // [S, R] where nothing stands beside x: gathered by the first block
  Tensor y, a;     // [P, out], [P, R] written block by block
};
[[nodiscard]] ColumnForward column_forward_gather(const Pass& pass, const ColumnLinears& w, const Beside& x,
                                                  const Tensor& dropped, const Tensor& y, const Tensor& a,
                                                  const Meanwhile& meanwhile);
void column_forward_block(const Pass& pass, const ColumnLinears& w, const TokenBlock& block,
                          const ColumnForward& forward);

struct RowForward {
  Tensor residual, y, a;  // [S, H] or absent, [S, H], [S, r]
};
// x and dropped of the block. With several tp ranks the sums stand in ws.gathered, where the tokens of the
// block may have stood; the last block reduces them.
void row_forward_block(const Pass& pass, const RowLinear& w, const TokenBlock& block, const Beside& x,
                       const Tensor& dropped, const RowForward& forward);

struct RowBackward {
  Tensor dy_slice, dy;  // [S, H], [P, H] gathered; may stand in ws.gathered
  Tensor da;            // [P, r] where nothing stands beside dx: made by the first block
};
[[nodiscard]] RowBackward row_backward_gather(const Pass& pass, const RowLinear& w, const Tensor& dy,
                                              const Tensor& a);
// dropout, x and dx of the block.
[[nodiscard]] LoraBranch row_backward_block(const Pass& pass, const RowLinear& w, const TokenBlock& block,
                                            RowBackward& backward, const Dropout& dropout, const Tensor& x,
                                            const Beside& dx);

struct ColumnBackward {
  Tensor dy;          // [P, out]
  Tensor x, dropped;  // [S, H], x with trained weights alone
  Tensor a, da;       // [P, R], da written where nothing stands beside dx
  Beside dx;          // [S, H]; on one rank written block by block, else by the last
  Tensor through_a;   // [S, H]
};
// With trained weights there is one block.
void column_backward_block(const Pass& pass, const ColumnLinears& w, const TokenBlock& block,
                           const ColumnBackward& backward);
Tensor column_backward_finish(const Pass& pass, const ColumnLinears& w, const ColumnBackward& backward);

}  // namespace pesc
