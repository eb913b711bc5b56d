// Linears with LoRA under tensor and sequence parallelism (Hu et al., 2021; Korthikanti et al., 2022).
//   y = W x + b + B a,   a = (alpha/r) A dropout(x)
// S tokens of the slice, P gathered tokens, H hidden, R stacked LoRA columns.
//
// Column-parallel (q,k,v or gate,up): x is the rank's slice of the tokens. `a` is computed on the slice and
// gathered together with x, so that no tp rank repeats another's work; the backward reduce-scatters da, and
// the gradient of A is computed from the slice only. Row-parallel (o or down): x is the rank's columns of all
// tokens; the partial sums of W x and A x are reduce-scattered, and B is applied on the slice. Gradients are
// added to.
//
// The caller applies dropout to x before these ops, and adds the gradient through A (returned) after them,
// because norm and SwiGLU fuse both. Where W and B are concatenated in one matrix (frozen_linear.h), so are x
// and a, and their gradients.
#pragma once

#include <functional>

#include "model/forward_context.h"
#include "model/frozen_linear.h"
#include "model/parameters.h"
#include "ops/lora.h"

namespace pesc {

// The columns that are concatenated to the input of a row-parallel linear. 0 with tp > 1, where `a` must be
// summed over the tp ranks first.
[[nodiscard]] inline int64_t concat_input_columns(const RowLinear& w, int tp) {
  return tp == 1 ? w.concat_columns() : 0;
}
// Whether dropout(x) needs a buffer of its own: with LoRA and a dropout rate.
[[nodiscard]] inline bool drops(int64_t lora_columns, const Dropout& mask) {
  return lora_columns > 0 && mask.rate > 0;
}

[[nodiscard]] inline float lora_scale(const ForwardContext& ctx) {
  return static_cast<float>(ctx.pesc.lora.lora_alpha / static_cast<double>(ctx.pesc.lora.r));
}
// One linear's columns of the stacked activations a [any, R].
[[nodiscard]] inline Tensor lora_part(const ColumnLinears::Part& part, const Tensor& a) {
  return a.col_range(part.lora_begin, part.lora_begin + part.lora_b.cols);
}

// Work that does not need the other ranks' tokens; it is enqueued while they are gathered.
using OverlappedWork = std::function<void()>;

// Memory for the codes of x [S, H], which the operation that makes x can write; absent also where x is gathered from
// several ranks.
[[nodiscard]] inline Fp8Rows column_input_codes(const ForwardContext& ctx, const ColumnLinears& w,
                                                int64_t tokens) {
  return ctx.tp.size() == 1 ? w.base.input_codes(ctx.scratch, tokens) : Fp8Rows{};
}

// x [S, H] with concat_columns() more columns; codes: from column_input_codes, with which x.x is not read; dropped
// [S, H] = dropout(x), or x itself -> y [P, out] written, and a [P, R] written for the backward.
void column_forward(const ForwardContext& ctx, const ColumnLinears& w, const ConcatView& x,
                    const Fp8Rows& codes, const Tensor& dropped, const Tensor& y, const Tensor& a);

struct ColumnBackward {
  Tensor dy;          // [P, out]
  Fp8Rows codes{};    // of the block's dy, from w.base.output_grad_codes, or absent
  Tensor x, dropped;  // [S, H] as in the forward; x is read with trainable weights only
  Tensor a;           // [P, R] of the forward
  Tensor da{};        // [P, R] written where it is not concatenated to dx; absent: in ws.lora_full
  ConcatView dx;      // [S, H] written, with concat_columns() more columns
  Tensor through_a;   // [S, H] written with the gradient through A, before the mask
};
// Returns through_a, or a tensor without data when there is no LoRA. Uses ws.gathered, ws.lora_*.
Tensor column_backward(const ForwardContext& ctx, const ColumnLinears& w, ColumnBackward args);

// x [P, in] with concat_input_columns() more columns; dropped [P, in] as above; residual [S, H], optional
// -> y [S, H] = W x + B a + residual written; a [S, r] written for the backward. Uses ws.gathered.
void row_forward(const ForwardContext& ctx, const RowLinear& w, const ConcatView& x, const Tensor& dropped,
                 const Tensor& residual, const Tensor& y, const Tensor& a);
// dy [S, H]; x [P, in] as in the forward (read with trainable weights only) -> dx [P, in] written, with
// concat_columns() more columns or none. Returns the LoRA branch, whose gradients the caller computes.
[[nodiscard]] LoraBranch row_backward(const ForwardContext& ctx, const RowLinear& w, const Dropout& dropout,
                                      const Tensor& dy, const Tensor& x, const Tensor& a,
                                      const ConcatView& dx);

// The same four functions in steps, for a chain of linears that processes the gathered tokens block by block
// (shared_ffn.h). A step without a block handles all tokens. REQUIRES: blocks are processed in order, each
// through the whole chain.

// A range of the gathered tokens.
struct TokenBlock {
  Range rows;
  int64_t tokens = 0;  // P: all of them
  [[nodiscard]] static TokenBlock all(int64_t tokens) { return {{0, tokens}, tokens}; }
  [[nodiscard]] bool first() const { return rows.begin == 0; }
  [[nodiscard]] bool last() const { return rows.end == tokens; }
  [[nodiscard]] Tensor of(const Tensor& t) const { return t.row_range(rows.begin, rows.end); }
};

struct ColumnForward {
  ConcatView x;    // [P, H + concat_columns()] gathered; may be in ws.gathered
  Fp8Rows codes;   // of x, or absent; set by the caller of column_forward_gather
  Tensor a_slice;  // [S, R] where `a` is not concatenated to x: gathered by the first block
  Tensor y, a;     // [P, out], [P, R] written block by block
};
[[nodiscard]] ColumnForward column_forward_gather(const ForwardContext& ctx, const ColumnLinears& w,
                                                  const ConcatView& x, const Tensor& dropped, const Tensor& y,
                                                  const Tensor& a, const OverlappedWork& overlapped_work);
void column_forward_block(const ForwardContext& ctx, const ColumnLinears& w, const TokenBlock& block,
                          const ColumnForward& forward);

struct RowForward {
  Tensor residual, y, a;  // [S, H] or absent, [S, H], [S, r]
  // Of the block's x, from w.base.input_codes, or absent. With them x.x is not read.
  Fp8Rows codes{};
};
// x and dropped of the block. With several tp ranks the partial sums are written to ws.gathered, over the
// tokens of the block; the last block reduces them.
void row_forward_block(const ForwardContext& ctx, const RowLinear& w, const TokenBlock& block,
                       const ConcatView& x, const Tensor& dropped, const RowForward& forward);

struct RowBackward {
  Tensor dy_slice, dy;  // [S, H], [P, H] gathered; may be in ws.gathered
  Tensor da;            // [P, r] where da is not concatenated to dx: made by the first block
};
[[nodiscard]] RowBackward row_backward_gather(const ForwardContext& ctx, const RowLinear& w, const Tensor& dy,
                                              const Tensor& a);
// dropout, x and dx of the block.
[[nodiscard]] LoraBranch row_backward_block(const ForwardContext& ctx, const RowLinear& w,
                                            const TokenBlock& block, RowBackward& backward,
                                            const Dropout& dropout, const Tensor& x, const ConcatView& dx);

// With trainable weights there is one block. backward.dx is written block by block on one rank, else by the
// last block; backward.da is present.
void column_backward_block(const ForwardContext& ctx, const ColumnLinears& w, const TokenBlock& block,
                           const ColumnBackward& backward);
Tensor column_backward_finish(const ForwardContext& ctx, const ColumnLinears& w,
                              const ColumnBackward& backward);

}  // namespace pesc
