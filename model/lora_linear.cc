#include "model/lora_linear.h"

#include "ops/gemm.h"
#include "ops/lora.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

float lora_scale(const Pass& pass) {
  return static_cast<float>(pass.pesc.lora.alpha / static_cast<double>(pass.pesc.lora.rank));
}

Tensor lora_part(const ColumnLinears::Part& part, const Tensor& a) {
  return a.col_range(part.lora_begin, part.lora_begin + part.lora_b.cols);
}

}  // namespace

void column_forward(const Pass& pass, const ColumnLinears& w, const Dropout& dropout, const Tensor& x,
                    const Tensor& y, const Tensor& a) {
  Stream& s = pass.stream;
  const Tensor all = pass.tp.gather(s, x, pass.ws.gathered.row_range(0, y.rows));
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_forward(s, all, w.weight, y);
  }
  if (w.bias.cols > 0) add_bias(s, w.bias, y);
  const int64_t r = w.lora_columns();
  if (r == 0) return;
  const PhaseScope phase(s, Phase::kLora);
  const Tensor mine = pass.tp.size() == 1 ? a : pass.ws.lora_slice.leading(x.rows, r);
  lora_down_forward(s, {x, dropout, w.lora_a, lora_scale(pass), mine}, pass.scratch);
  pass.tp.gather(s, mine, a);
  for (const ColumnLinears::Part& part : w.parts) {
    if (part.lora_begin < 0) continue;
    linear_forward(s, lora_part(part, a), part.lora_b, y.col_range(part.begin, part.end), 1.0F, 1.0F);
  }
}

void column_backward(const Pass& pass, const ColumnLinears& w, const Dropout& dropout, const Tensor& dy,
                     const Tensor& x, const Tensor& a, const Tensor& dx) {
  Stream& s = pass.stream;
  const Tensor gathered = pass.ws.gathered.row_range(0, dy.rows);
  if (w.parts.front().dweight.cols > 0) {
    const PhaseScope phase(s, Phase::kGemm);
    const Tensor all = pass.tp.gather(s, x, gathered);
    for (const ColumnLinears::Part& part : w.parts) {
      const Tensor dpart = dy.col_range(part.begin, part.end);
      linear_backward_weight(s, dpart, all, part.dweight);
      if (part.dbias.cols > 0) bias_backward(s, dpart, part.dbias);
    }
  }
  const Tensor partial = pass.tp.size() == 1 ? dx : gathered;
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_backward_input(s, dy, w.weight, partial);
  }
  pass.tp.reduce_scatter(s, partial, dx);
  const int64_t r = w.lora_columns();
  if (r == 0) return;
  const PhaseScope phase(s, Phase::kLora);
  const Tensor da = pass.ws.lora_full.leading(dy.rows, r);
  for (const ColumnLinears::Part& part : w.parts) {
    if (part.lora_begin < 0) continue;
    const Tensor dpart = dy.col_range(part.begin, part.end);
    linear_backward_input(s, dpart, part.lora_b, lora_part(part, da));
    linear_backward_weight(s, dpart, lora_part(part, a), part.dlora_b);
  }
  const Tensor mine = pass.tp.reduce_scatter(s, da, pass.ws.lora_slice.leading(x.rows, r));
  lora_down_backward(s, {mine, x, dropout, w.lora_a, lora_scale(pass), w.dlora_a, dx}, pass.scratch);
}

void row_forward(const Pass& pass, const RowLinear& w, const Dropout& dropout, const Tensor& x,
                 const Tensor& y, const Tensor& a) {
  Stream& s = pass.stream;
  const bool alone = pass.tp.size() == 1;
  const Tensor partial = alone ? y : pass.ws.gathered.row_range(0, x.rows);
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_forward(s, x, w.weight, partial);
  }
  pass.tp.reduce_scatter(s, partial, y);
  const int64_t r = w.lora_columns();
  if (r == 0) return;
  const PhaseScope phase(s, Phase::kLora);
  const Tensor a_partial = alone ? a : pass.ws.lora_full.leading(x.rows, r);
  lora_down_forward(s, {x, dropout, w.lora_a, lora_scale(pass), a_partial}, pass.scratch);
  pass.tp.reduce_scatter(s, a_partial, a);
  linear_forward(s, a, w.lora_b, y, 1.0F, 1.0F);
}

void row_backward(const Pass& pass, const RowLinear& w, const Dropout& dropout, const Tensor& dy,
                  const Tensor& x, const Tensor& a, const Tensor& dx) {
  Stream& s = pass.stream;
  const Tensor all = pass.tp.gather(s, dy, pass.ws.gathered.row_range(0, x.rows));
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_backward_input(s, all, w.weight, dx);
    if (w.dweight.cols > 0) linear_backward_weight(s, all, x, w.dweight);
  }
  const int64_t r = w.lora_columns();
  if (r == 0) return;
  const PhaseScope phase(s, Phase::kLora);
  const Tensor mine = pass.ws.lora_slice.leading(dy.rows, r);
  linear_backward_input(s, dy, w.lora_b, mine);
  linear_backward_weight(s, dy, a, w.dlora_b);
  const Tensor da = pass.tp.gather(s, mine, pass.ws.lora_full.leading(x.rows, r));
  lora_down_backward(s, {da, x, dropout, w.lora_a, lora_scale(pass), w.dlora_a, dx}, pass.scratch);
}

}  // namespace pesc
