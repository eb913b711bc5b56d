#include "model/lora_linear.h"

#include "ops/core/check.h"
#include "ops/gemm.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

void weight_gradients(const Pass& pass, const ColumnLinears& w, const Tensor& dy, const Tensor& x) {
  Stream& s = pass.stream;
  const PhaseScope phase(s, Phase::kGemm);
  const Tensor all = pass.tp.gather(s, x, pass.ws.gathered.leading(dy.rows, x.cols));
  for (const ColumnLinears::Part& part : w.parts) {
    const Tensor dpart = dy.col_range(part.begin, part.end);
    linear_backward_weight(s, dpart, all, part.dweight);
    if (part.dbias.cols > 0) bias_backward(s, dpart, part.dbias);
  }
}

}  // namespace

ColumnForward column_forward_gather(const Pass& pass, const ColumnLinears& w, const Beside& x,
                                    const Tensor& dropped, const Tensor& y, const Tensor& a,
                                    const Meanwhile& meanwhile) {
  Stream& s = pass.stream;
  const int64_t r = w.lora_columns();
  const bool joined = x.a.cols > 0;
  const Tensor mine = joined ? x.a : pass.tp.size() == 1 ? a : pass.ws.lora_slice.leading(x.x.rows, r);
  if (r > 0) {
    const PhaseScope phase(s, Phase::kLora);
    lora_down_forward(s, {dropped, w.lora_a, lora_scale(pass), mine});
  }
  const Tensor all = pass.tp.start_gather(s, x.all, pass.ws.gathered.leading(y.rows, x.all.cols));
  if (meanwhile) meanwhile();
  pass.tp.finish(s);
  return {Beside(all, x.x.cols), joined ? Tensor{} : mine, y, a};
}

void column_forward_block(const Pass& pass, const ColumnLinears& w, const TokenBlock& block,
                          const ColumnForward& forward) {
  Stream& s = pass.stream;
  const Beside x = forward.x.rows(block.rows);
  const Tensor y = block.of(forward.y);
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_forward(s, w.base, x, y, pass.scratch);
  }
  if (w.bias.cols > 0) add_bias(s, w.bias, y);
  if (w.lora_columns() == 0) return;
  const PhaseScope phase(s, Phase::kLora);
  const Tensor a = block.of(forward.a);
  if (x.a.cols > 0) return copy(s, x.a, a);
  if (block.first()) pass.tp.gather(s, forward.a_slice, forward.a);
  for (const ColumnLinears::Part& part : w.parts) {
    if (part.lora_begin < 0) continue;
    linear_forward(s, lora_part(part, a), part.lora_b, y.col_range(part.begin, part.end), 1.0F, 1.0F);
  }
}

void column_forward(const Pass& pass, const ColumnLinears& w, const Beside& x, const Tensor& dropped,
                    const Tensor& y, const Tensor& a, const Meanwhile& meanwhile) {
  const ColumnForward forward = column_forward_gather(pass, w, x, dropped, y, a, meanwhile);
  column_forward_block(pass, w, TokenBlock::all(y.rows), forward);
}

void column_backward_block(const Pass& pass, const ColumnLinears& w, const TokenBlock& block,
                           const ColumnBackward& backward) {
  Stream& s = pass.stream;
  if (w.parts.front().dweight.cols > 0) {
    PESC_CHECK(block.first() && block.last(), "gradients of dense weights are made of all tokens");
    weight_gradients(pass, w, backward.dy, backward.x);
  }
  const Beside& dx = backward.dx;
  const Tensor dy = block.of(backward.dy);
  const Tensor partial = pass.tp.size() == 1 ? dx.all : pass.ws.gathered.leading(block.tokens, dx.all.cols);
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_backward_input(s, w.base, dy, Beside(block.of(partial), dx.x.cols), pass.scratch);
  }
  if (block.last()) pass.tp.start_reduce_scatter(s, partial, dx.all);
  if (w.lora_columns() == 0) return;
  const PhaseScope phase(s, Phase::kLora);
  for (const ColumnLinears::Part& part : w.parts) {
    if (part.lora_begin < 0) continue;
    const Tensor dpart = dy.col_range(part.begin, part.end);
    if (dx.a.cols == 0) linear_backward_input(s, dpart, part.lora_b, lora_part(part, block.of(backward.da)));
    linear_backward_weight(s, dpart, lora_part(part, block.of(backward.a)), part.dlora_b);
  }
}

Tensor column_backward_finish(const Pass& pass, const ColumnLinears& w, const ColumnBackward& backward) {
  Stream& s = pass.stream;
  const int64_t r = w.lora_columns();
  if (r == 0) {
    pass.tp.finish(s);
    return {};
  }
  const PhaseScope phase(s, Phase::kLora);
  pass.tp.finish(s);
  const Beside& dx = backward.dx;
  const Tensor mine =
      dx.a.cols > 0 ? dx.a : pass.tp.reduce_scatter(s, backward.da, pass.ws.lora_slice.leading(dx.x.rows, r));
  const LoraBranch branch{mine, w.lora_a, lora_scale(pass), {}, w.dlora_a};
  lora_weight_gradient(s, branch, backward.dropped);
  lora_input_gradient(s, branch, backward.through_a);
  return backward.through_a;
}

Tensor column_backward(const Pass& pass, const ColumnLinears& w, const Tensor& dy, const Tensor& x,
                       const Tensor& dropped, const Tensor& a, const Beside& dx, const Tensor& through_a) {
  const Tensor da = pass.ws.lora_full.leading(dy.rows, w.lora_columns());
  const ColumnBackward backward{dy, x, dropped, a, da, dx, through_a};
  column_backward_block(pass, w, TokenBlock::all(dy.rows), backward);
  return column_backward_finish(pass, w, backward);
}

void row_forward_block(const Pass& pass, const RowLinear& w, const TokenBlock& block, const Beside& x,
                       const Tensor& dropped, const RowForward& forward) {
  Stream& s = pass.stream;
  const auto& [residual, y, a] = forward;
  const bool alone = pass.tp.size() == 1;
  const int64_t r = w.lora_columns();
  if (x.a.cols > 0) {  // one product, and the residual with it
    {
      const PhaseScope phase(s, Phase::kLora);
      lora_down_forward(s, {dropped, w.lora_a, lora_scale(pass), x.a});
      const Tensor kept = block.of(a);
      if (kept.data != x.a.data) copy(s, x.a, kept);
    }
    const PhaseScope phase(s, Phase::kGemm);
    return linear_forward(s, w.base, x, block.of(y), pass.scratch,
                          residual.present() ? block.of(residual) : residual);
  }
  const Tensor partial = alone ? y : pass.ws.gathered.leading(block.tokens, y.cols);
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_forward(s, w.base, x, block.of(partial), pass.scratch);
  }
  if (block.last()) pass.tp.start_reduce_scatter(s, partial, y);
  if (r > 0) {
    const PhaseScope phase(s, Phase::kLora);
    const Tensor a_partial = alone ? a : pass.ws.lora_full.leading(block.tokens, r);
    lora_down_forward(s, {dropped, w.lora_a, lora_scale(pass), block.of(a_partial)});
    if (alone) {
      linear_forward(s, block.of(a), w.lora_b, block.of(y), 1.0F, 1.0F);
    } else if (block.last()) {
      pass.tp.reduce_scatter(s, a_partial, a);  // and the one before
      linear_forward(s, a, w.lora_b, y, 1.0F, 1.0F);
    }
  }
  if (!block.last()) return;
  if (r == 0) pass.tp.finish(s);
  if (residual.present()) add(s, residual, y);
}

void row_forward(const Pass& pass, const RowLinear& w, const Beside& x, const Tensor& dropped,
                 const Tensor& residual, const Tensor& y, const Tensor& a) {
  row_forward_block(pass, w, TokenBlock::all(x.x.rows), x, dropped, {residual, y, a});
}

RowBackward row_backward_gather(const Pass& pass, const RowLinear& w, const Tensor& dy, const Tensor& a) {
  Stream& s = pass.stream;
  const Tensor all = pass.tp.start_gather(s, dy, pass.ws.gathered.leading(pass.batch.padded, dy.cols));
  if (w.lora_columns() > 0) {
    const PhaseScope phase(s, Phase::kLora);
    linear_backward_weight(s, dy, a, w.dlora_b);
  }
  pass.tp.finish(s);
  return {dy, all, {}};
}

LoraBranch row_backward_block(const Pass& pass, const RowLinear& w, const TokenBlock& block,
                              RowBackward& backward, const Dropout& dropout, const Tensor& x,
                              const Beside& dx) {
  Stream& s = pass.stream;
  {
    const PhaseScope phase(s, Phase::kGemm);
    const Tensor dy = block.of(backward.dy);
    linear_backward_input(s, w.base, dy, dx, pass.scratch);
    if (w.dweight.cols > 0) linear_backward_weight(s, dy, x, w.dweight);
  }
  const int64_t r = w.lora_columns();
  if (r == 0) return {};
  const PhaseScope phase(s, Phase::kLora);
  if (dx.a.cols == 0 && block.first()) {
    const Tensor mine = pass.ws.lora_slice.leading(backward.dy_slice.rows, r);
    linear_backward_input(s, backward.dy_slice, w.lora_b, mine);
    backward.da = pass.tp.gather(s, mine, pass.ws.lora_full.leading(block.tokens, r));
  }
  const Tensor da = dx.a.cols > 0 ? dx.a : block.of(backward.da);
  return {da, w.lora_a, lora_scale(pass), dropout, w.dlora_a};
}

LoraBranch row_backward(const Pass& pass, const RowLinear& w, const Dropout& dropout, const Tensor& dy,
                        const Tensor& x, const Tensor& a, const Beside& dx) {
  RowBackward backward = row_backward_gather(pass, w, dy, a);
  return row_backward_block(pass, w, TokenBlock::all(dx.x.rows), backward, dropout, x, dx);
}

}  // namespace pesc
