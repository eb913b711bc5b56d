#include "model/shared_ffn.h"

#include "model/lora_linear.h"
#include "ops/swiglu.h"

namespace pesc {
void shared_ffn_forward(const Pass& pass, int64_t layer, const LayerParameters& p, const LayerSaved& saved,
                        const Tensor& x, const Tensor& f) {
  const Batch& b = pass.batch;
  const Tensor gate_up = saved.gate_up.row_range(0, b.padded);
  const Tensor h = pass.ws.wide2.leading(b.padded, p.down.weight.cols);
  column_forward(pass, p.gate_up, pass.slice_dropout(layer, DropoutSite::kGateUp), x, gate_up,
                 saved.a_gate_up.row_range(0, b.padded));
  swiglu_forward(pass.stream, gate_up, h);
  row_forward(pass, p.down, pass.full_dropout(layer, DropoutSite::kDown, p.down.column0), h, f,
              saved.a_down.row_range(0, b.slice));
}

void shared_ffn_backward(const Pass& pass, int64_t layer, const LayerParameters& p, const LayerSaved& saved,
                         const Tensor& df, const Tensor& x, const Tensor& dx) {
  const Batch& b = pass.batch;
  const Tensor gate_up = saved.gate_up.row_range(0, b.padded);
  const Tensor h = pass.ws.wide2.leading(b.padded, p.down.weight.cols);
  const Tensor dh = pass.ws.wide.leading(b.padded, p.down.weight.cols);
  swiglu_forward(pass.stream, gate_up, h);
  row_backward(pass, p.down, pass.full_dropout(layer, DropoutSite::kDown, p.down.column0), df, h,
               saved.a_down.row_range(0, b.slice), dh);
  swiglu_backward(pass.stream, dh, gate_up, gate_up);
  column_backward(pass, p.gate_up, pass.slice_dropout(layer, DropoutSite::kGateUp), gate_up, x,
                  saved.a_gate_up.row_range(0, b.padded), dx);
}

}  // namespace pesc
