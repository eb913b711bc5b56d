#include "model/shared_ffn.h"

#include "model/ffn_blocks.h"
#include "ops/swiglu.h"

namespace pesc {

LayerSaved ffn_rows(const LayerSaved& saved, const BatchChunk& chunk) {
  const Range& rows = chunk.rows;
  const int64_t tp = rows.size() == 0 ? 1 : chunk.batch.padded / rows.size();
  LayerSaved some;
  some.gate_up = saved.gate_up.row_range(rows.begin * tp, rows.end * tp);
  some.a_gate_up = saved.a_gate_up.row_range(rows.begin * tp, rows.end * tp);
  some.a_down = saved.a_down.row_range(rows.begin, rows.end);
  return some;
}

void shared_ffn_forward(const Pass& pass, int64_t layer, const LayerParameters& p, const LayerSaved& saved,
                        const Beside& x, const Tensor& dropped, const Tensor& residual, const Tensor& f,
                        const Meanwhile& meanwhile) {
  if (ffn_blocks(pass, p) > 1)
    return ffn_forward_in_blocks(pass, layer, p, saved, x.x, dropped, residual, f, meanwhile);
  const Batch& b = pass.batch;
  const Tensor gate_up = saved.gate_up.row_range(0, b.padded);
  const int64_t columns = p.down.base.in;
  const Beside h(pass.ws.wide2, b.padded, columns, columns_beside_input(p.down, pass.tp.size()));
  const Dropout mask = pass.full_dropout(layer, DropoutSite::kDown, p.down.column0);
  const Tensor second =
      drops(p.down.lora_columns(), mask) ? pass.ws.wide.leading(b.padded, columns) : Tensor{};
  column_forward(pass, p.gate_up, x, dropped, gate_up, saved.a_gate_up.row_range(0, b.padded), meanwhile);
  swiglu_forward(pass.stream, gate_up, h.x, {mask, second});
  row_forward(pass, p.down, h, second.cols > 0 ? second : h.x, residual, f,
              saved.a_down.row_range(0, b.slice));
}

Tensor shared_ffn_backward(const Pass& pass, int64_t layer, const LayerParameters& p, const LayerSaved& saved,
                           const Tensor& df, const Tensor& x, const Tensor& dropped, const Beside& dx,
                           const Tensor& through_a) {
  if (ffn_blocks(pass, p) > 1)
    return ffn_backward_in_blocks(pass, layer, p, saved, df, dropped, dx.x, through_a);
  const Batch& b = pass.batch;
  const Tensor gate_up = saved.gate_up.row_range(0, b.padded);
  const int64_t columns = p.down.base.in;
  const Tensor h = pass.ws.wide2.leading(b.padded, columns);
  if (p.down.dweight.cols > 0) swiglu_forward(pass.stream, gate_up, h);
  const Beside dh(pass.ws.wide, b.padded, columns, p.down.joined_columns());
  const LoraBranch lora =
      row_backward(pass, p.down, pass.full_dropout(layer, DropoutSite::kDown, p.down.column0), df, h,
                   saved.a_down.row_range(0, b.slice), dh);
  swiglu_backward(pass.stream, {dh.x, gate_up, gate_up, lora}, pass.scratch);
  return column_backward(pass, p.gate_up, gate_up, x, dropped, saved.a_gate_up.row_range(0, b.padded), dx,
                         through_a);
}

}  // namespace pesc
