#include "model/lora_linear.h"

#include "ops/core/check.h"
#include "ops/gemm.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

void weight_gradients(const ForwardContext& ctx, const ColumnLinears& w, const Tensor& dy, const Tensor& x) {
  Stream& s = ctx.stream;
  const PhaseScope phase(s, Phase::kGemm);
  const Tensor all = ctx.tp.gather(s, x, ctx.ws.gathered.leading(dy.rows, x.cols));
  for (const ColumnLinears::Part& part : w.parts) {
    const Tensor dpart = dy.col_range(part.begin, part.end);
    linear_backward_weight(s, dpart, all, part.dweight);
    if (part.dbias.cols > 0) bias_backward(s, dpart, part.dbias);
  }
}

}  // namespace

ColumnForward column_forward_gather(const ForwardContext& ctx, const ColumnLinears& w, const ConcatView& x,
                                    const Tensor& dropped, const Tensor& y, const Tensor& a,
                                    const OverlappedWork& overlapped_work) {
  Stream& s = ctx.stream;
  const int64_t r = w.lora_columns();
  const bool concat = x.a.cols > 0;
  const Tensor mine = concat ? x.a : ctx.tp.size() == 1 ? a : ctx.ws.lora_slice.leading(x.x.rows, r);
  if (r > 0) {
    const PhaseScope phase(s, Phase::kLora);
    lora_down_forward(s, {dropped, w.lora_a, lora_scale(ctx), mine});
  }
  const Tensor all = ctx.tp.start_gather(s, x.all, ctx.ws.gathered.leading(y.rows, x.all.cols));
  if (overlapped_work) overlapped_work();
  ctx.tp.finish(s);
  return {ConcatView(all, x.x.cols), {}, concat ? Tensor{} : mine, y, a};
}

void column_forward_block(const ForwardContext& ctx, const ColumnLinears& w, const TokenBlock& block,
                          const ColumnForward& forward) {
  Stream& s = ctx.stream;
  const ConcatView x = forward.x.rows(block.rows);
  const Tensor y = block.of(forward.y);
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_forward(s, w.base, x, y, ctx.scratch, {}, forward.codes.rows(block.rows.begin, block.rows.end));
  }
  if (w.bias.cols > 0) add_bias(s, w.bias, y);
  if (w.lora_columns() == 0) return;
  const PhaseScope phase(s, Phase::kLora);
  const Tensor a = block.of(forward.a);
  if (x.a.cols > 0) return copy(s, x.a, a);
  if (block.first()) ctx.tp.gather(s, forward.a_slice, forward.a);
  for (const ColumnLinears::Part& part : w.parts) {
    if (part.lora_begin < 0) continue;
    linear_forward(s, lora_part(part, a), part.lora_b, y.col_range(part.begin, part.end), 1.0F, 1.0F);
  }
}

void column_forward(const ForwardContext& ctx, const ColumnLinears& w, const ConcatView& x,
                    const Fp8Rows& codes, const Tensor& dropped, const Tensor& y, const Tensor& a) {
  ColumnForward forward = column_forward_gather(ctx, w, x, dropped, y, a, {});
  forward.codes = codes;
  column_forward_block(ctx, w, TokenBlock::all(y.rows), forward);
}

void column_backward_block(const ForwardContext& ctx, const ColumnLinears& w, const TokenBlock& block,
                           const ColumnBackward& backward) {
  Stream& s = ctx.stream;
  if (w.parts.front().dweight.cols > 0) {
    PESC_CHECK(block.first() && block.last(), "gradients of dense weights are made of all tokens");
    weight_gradients(ctx, w, backward.dy, backward.x);
  }
  const ConcatView& dx = backward.dx;
  const Tensor dy = block.of(backward.dy);
  const Tensor partial = ctx.tp.size() == 1 ? dx.all : ctx.ws.gathered.leading(block.tokens, dx.all.cols);
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_backward_input(s, w.base, dy, ConcatView(block.of(partial), dx.x.cols), ctx.scratch,
                          backward.codes);
  }
  if (block.last()) ctx.tp.start_reduce_scatter(s, partial, dx.all);
  if (w.lora_columns() == 0) return;
  const PhaseScope phase(s, Phase::kLora);
  for (const ColumnLinears::Part& part : w.parts) {
    if (part.lora_begin < 0) continue;
    const Tensor dpart = dy.col_range(part.begin, part.end);
    if (dx.a.cols == 0) linear_backward_input(s, dpart, part.lora_b, lora_part(part, block.of(backward.da)));
    linear_backward_weight(s, dpart, lora_part(part, block.of(backward.a)), part.dlora_b);
  }
}

Tensor column_backward_finish(const ForwardContext& ctx, const ColumnLinears& w,
                              const ColumnBackward& backward) {
  Stream& s = ctx.stream;
  const int64_t r = w.lora_columns();
  if (r == 0) {
    ctx.tp.finish(s);
    return {};
  }
  const PhaseScope phase(s, Phase::kLora);
  ctx.tp.finish(s);
  const ConcatView& dx = backward.dx;
  const Tensor mine =
      dx.a.cols > 0 ? dx.a : ctx.tp.reduce_scatter(s, backward.da, ctx.ws.lora_slice.leading(dx.x.rows, r));
  const LoraBranch branch{mine, w.lora_a, lora_scale(ctx), {}, w.dlora_a};
  lora_weight_gradient(s, branch, backward.dropped);
  lora_input_gradient(s, branch, backward.through_a);
  return backward.through_a;
}

Tensor column_backward(const ForwardContext& ctx, const ColumnLinears& w, ColumnBackward args) {
  if (!args.da.present()) args.da = ctx.ws.lora_full.leading(args.dy.rows, w.lora_columns());
  column_backward_block(ctx, w, TokenBlock::all(args.dy.rows), args);
  return column_backward_finish(ctx, w, args);
}

void row_forward_block(const ForwardContext& ctx, const RowLinear& w, const TokenBlock& block,
                       const ConcatView& x, const Tensor& dropped, const RowForward& forward) {
  Stream& s = ctx.stream;
  const auto& [residual, y, a, codes] = forward;
  const bool alone = ctx.tp.size() == 1;
  const int64_t r = w.lora_columns();
  if (x.a.cols > 0) {  // one GEMM, and the residual with it
    {
      const PhaseScope phase(s, Phase::kLora);
      lora_down_forward(s, {dropped, w.lora_a, lora_scale(ctx), x.a});
      const Tensor kept = block.of(a);
      if (kept.data != x.a.data) copy(s, x.a, kept);
    }
    const PhaseScope phase(s, Phase::kGemm);
    return linear_forward(s, w.base, x, block.of(y), ctx.scratch,
                          residual.present() ? block.of(residual) : residual, codes);
  }
  const Tensor partial = alone ? y : ctx.ws.gathered.leading(block.tokens, y.cols);
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_forward(s, w.base, x, block.of(partial), ctx.scratch, {}, codes);
  }
  if (block.last()) ctx.tp.start_reduce_scatter(s, partial, y);
  if (r > 0) {
    const PhaseScope phase(s, Phase::kLora);
    const Tensor a_partial = alone ? a : ctx.ws.lora_full.leading(block.tokens, r);
    lora_down_forward(s, {dropped, w.lora_a, lora_scale(ctx), block.of(a_partial)});
    if (alone) {
      linear_forward(s, block.of(a), w.lora_b, block.of(y), 1.0F, 1.0F);
    } else if (block.last()) {
      ctx.tp.reduce_scatter(s, a_partial, a);  // and the one before
      linear_forward(s, a, w.lora_b, y, 1.0F, 1.0F);
    }
  }
  if (!block.last()) return;
  if (r == 0) ctx.tp.finish(s);
  if (residual.present()) add(s, residual, y);
}

void row_forward(const ForwardContext& ctx, const RowLinear& w, const ConcatView& x, const Tensor& dropped,
                 const Tensor& residual, const Tensor& y, const Tensor& a) {
  row_forward_block(ctx, w, TokenBlock::all(x.x.rows), x, dropped, {residual, y, a});
}

RowBackward row_backward_gather(const ForwardContext& ctx, const RowLinear& w, const Tensor& dy,
                                const Tensor& a) {
  Stream& s = ctx.stream;
  const Tensor all = ctx.tp.start_gather(s, dy, ctx.ws.gathered.leading(ctx.batch.padded, dy.cols));
  if (w.lora_columns() > 0) {
    const PhaseScope phase(s, Phase::kLora);
    linear_backward_weight(s, dy, a, w.dlora_b);
  }
  ctx.tp.finish(s);
  return {dy, all, {}};
}

LoraBranch row_backward_block(const ForwardContext& ctx, const RowLinear& w, const TokenBlock& block,
                              RowBackward& backward, const Dropout& dropout, const Tensor& x,
                              const ConcatView& dx) {
  Stream& s = ctx.stream;
  {
    const PhaseScope phase(s, Phase::kGemm);
    const Tensor dy = block.of(backward.dy);
    linear_backward_input(s, w.base, dy, dx, ctx.scratch);
    if (w.dweight.cols > 0) linear_backward_weight(s, dy, x, w.dweight);
  }
  const int64_t r = w.lora_columns();
  if (r == 0) return {};
  const PhaseScope phase(s, Phase::kLora);
  if (dx.a.cols == 0 && block.first()) {
    const Tensor mine = ctx.ws.lora_slice.leading(backward.dy_slice.rows, r);
    linear_backward_input(s, backward.dy_slice, w.lora_b, mine);
    backward.da = ctx.tp.gather(s, mine, ctx.ws.lora_full.leading(block.tokens, r));
  }
  const Tensor da = dx.a.cols > 0 ? dx.a : block.of(backward.da);
  return {da, w.lora_a, lora_scale(ctx), dropout, w.dlora_a};
}

LoraBranch row_backward(const ForwardContext& ctx, const RowLinear& w, const Dropout& dropout,
                        const Tensor& dy, const Tensor& x, const Tensor& a, const ConcatView& dx) {
  RowBackward backward = row_backward_gather(ctx, w, dy, a);
  return row_backward_block(ctx, w, TokenBlock::all(dx.x.rows), backward, dropout, x, dx);
}

}  // namespace pesc
