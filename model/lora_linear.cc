#include "model/lora_linear.h"

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

void column_forward(const Pass& pass, const ColumnLinears& w, const Beside& x, const Tensor& dropped,
                    const Tensor& y, const Tensor& a, const Meanwhile& meanwhile) {
  Stream& s = pass.stream;
  const int64_t r = w.lora_columns();
  const bool joined = x.a.cols > 0;
  const Tensor mine = joined ? x.a : pass.tp.size() == 1 ? a : pass.ws.lora_slice.leading(x.x.rows, r);
  if (r > 0) {
    const PhaseScope phase(s, Phase::kLora);
    lora_down_forward(s, {dropped, w.lora_a, lora_scale(pass), mine});
  }
  const Beside all(pass.tp.start_gather(s, x.all, pass.ws.gathered.leading(y.rows, x.all.cols)), x.x.cols);
  if (meanwhile) meanwhile();
  pass.tp.finish(s);
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_forward(s, w.base, all, y, pass.scratch);
  }
  if (w.bias.cols > 0) add_bias(s, w.bias, y);
  if (r == 0) return;
  const PhaseScope phase(s, Phase::kLora);
  if (joined) return copy(s, all.a, a);
  pass.tp.gather(s, mine, a);
  for (const ColumnLinears::Part& part : w.parts) {
    if (part.lora_begin < 0) continue;
    linear_forward(s, lora_part(part, a), part.lora_b, y.col_range(part.begin, part.end), 1.0F, 1.0F);
  }
}

Tensor column_backward(const Pass& pass, const ColumnLinears& w, const Tensor& dy, const Tensor& x,
                       const Tensor& dropped, const Tensor& a, const Beside& dx, const Tensor& through_a) {
  Stream& s = pass.stream;
  if (w.parts.front().dweight.cols > 0) weight_gradients(pass, w, dy, x);
  const int64_t r = w.lora_columns();
  const bool joined = dx.a.cols > 0;
  const Tensor partial = pass.tp.size() == 1 ? dx.all : pass.ws.gathered.leading(dy.rows, dx.all.cols);
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_backward_input(s, w.base, dy, Beside(partial, dx.x.cols), pass.scratch);
  }
  pass.tp.start_reduce_scatter(s, partial, dx.all);
  if (r == 0) {
    pass.tp.finish(s);
    return {};
  }
  const PhaseScope phase(s, Phase::kLora);
  Tensor mine = dx.a;
  const Tensor da = pass.ws.lora_full.leading(dy.rows, r);
  for (const ColumnLinears::Part& part : w.parts) {
    if (part.lora_begin < 0) continue;
    const Tensor dpart = dy.col_range(part.begin, part.end);
    if (!joined) linear_backward_input(s, dpart, part.lora_b, lora_part(part, da));
    linear_backward_weight(s, dpart, lora_part(part, a), part.dlora_b);
  }
  pass.tp.finish(s);
  if (!joined) mine = pass.tp.reduce_scatter(s, da, pass.ws.lora_slice.leading(dx.x.rows, r));
  const LoraBranch branch{mine, w.lora_a, lora_scale(pass), {}, w.dlora_a};
  lora_weight_gradient(s, branch, dropped);
  lora_input_gradient(s, branch, through_a);
  return through_a;
}

void row_forward(const Pass& pass, const RowLinear& w, const Beside& x, const Tensor& dropped,
                 const Tensor& residual, const Tensor& y, const Tensor& a) {
  Stream& s = pass.stream;
  const bool alone = pass.tp.size() == 1;
  const int64_t r = w.lora_columns();
  if (x.a.cols > 0) {  // one product, and the residual with it
    {
      const PhaseScope phase(s, Phase::kLora);
      lora_down_forward(s, {dropped, w.lora_a, lora_scale(pass), x.a});
      if (a.data != x.a.data) copy(s, x.a, a);
    }
    const PhaseScope phase(s, Phase::kGemm);
    return linear_forward(s, w.base, x, y, pass.scratch, residual);
  }
  const Tensor partial = alone ? y : pass.ws.gathered.leading(x.x.rows, y.cols);
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_forward(s, w.base, x, partial, pass.scratch);
  }
  pass.tp.start_reduce_scatter(s, partial, y);
  if (r == 0) pass.tp.finish(s);
  if (r > 0) {
    const PhaseScope phase(s, Phase::kLora);
    const Tensor a_partial = alone ? a : pass.ws.lora_full.leading(x.x.rows, r);
    lora_down_forward(s, {dropped, w.lora_a, lora_scale(pass), a_partial});
    pass.tp.reduce_scatter(s, a_partial, a);  // and the one before
    linear_forward(s, a, w.lora_b, y, 1.0F, 1.0F);
  }
  if (residual.present()) add(s, residual, y);
}

LoraBranch row_backward(const Pass& pass, const RowLinear& w, const Dropout& dropout, const Tensor& dy,
                        const Tensor& x, const Tensor& a, const Beside& dx) {
  Stream& s = pass.stream;
  const bool joined = dx.a.cols > 0;
  const Tensor all = pass.tp.start_gather(s, dy, pass.ws.gathered.leading(dx.x.rows, dy.cols));
  const int64_t r = w.lora_columns();
  if (r > 0) {
    const PhaseScope phase(s, Phase::kLora);
    linear_backward_weight(s, dy, a, w.dlora_b);
  }
  pass.tp.finish(s);
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_backward_input(s, w.base, all, dx, pass.scratch);
    if (w.dweight.cols > 0) linear_backward_weight(s, all, x, w.dweight);
  }
  if (r == 0) return {};
  const PhaseScope phase(s, Phase::kLora);
  Tensor da = dx.a;
  if (!joined) {
    const Tensor mine = pass.ws.lora_slice.leading(dy.rows, r);
    linear_backward_input(s, dy, w.lora_b, mine);
    da = pass.tp.gather(s, mine, pass.ws.lora_full.leading(dx.x.rows, r));
  }
  return {da, w.lora_a, lora_scale(pass), dropout, w.dlora_a};
}

}  // namespace pesc
