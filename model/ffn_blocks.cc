// F columns of the FFN on this rank, H hidden, P gathered tokens, S of the slice. Where the tp group has one
// rank the gathered tokens are the slice's own and the partial sums the output.
#include "model/ffn_blocks.h"

#include <algorithm>

#include "ops/core/threads.h"
#include "ops/gemm.h"
#include "ops/reduce.h"
#include "ops/swiglu.h"

namespace pesc {
namespace {

// Products of fewer rows spend too much of their time on the weight (OpenBLAS brings it into panels for
// each).
constexpr int64_t kFewest = 128;

// fn(rows, at): at(t) is those rows of t [P, any].
template <class Fn>
void for_blocks(const Pass& pass, const LayerParameters& p, Fn&& fn) {
  const int64_t all = pass.batch.padded;
  const int64_t blocks = ffn_blocks(pass, p);
  for (int64_t i = 0; i < blocks; ++i) {
    const Range rows{all * i / blocks, all * (i + 1) / blocks};
    fn(rows, [&rows](const Tensor& t) { return t.row_range(rows.begin, rows.end); });
  }
}

// y = W x + B a for some rows of all tokens.
void gate_up_rows(const Pass& pass, const ColumnLinears& w, const Tensor& x, const Tensor& a,
                  const Tensor& y) {
  Stream& s = pass.stream;
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_forward(s, w.base, Beside(x, x.cols), y, pass.scratch);
  }
  const PhaseScope phase(s, Phase::kLora);
  for (const ColumnLinears::Part& part : w.parts) {
    if (part.lora_begin < 0) continue;
    linear_forward(s, lora_part(part, a), part.lora_b, y.col_range(part.begin, part.end), 1.0F, 1.0F);
  }
}

// Of some rows: the partial sums dx = dy W, da = dy B, and B's gradients.
void gate_up_rows_backward(const Pass& pass, const ColumnLinears& w, const Tensor& dy, const Tensor& a,
                           const Tensor& dx, const Tensor& da) {
  Stream& s = pass.stream;
  {
    const PhaseScope phase(s, Phase::kGemm);
    linear_backward_input(s, w.base, dy, Beside(dx, dx.cols), pass.scratch);
  }
  const PhaseScope phase(s, Phase::kLora);
  for (const ColumnLinears::Part& part : w.parts) {
    if (part.lora_begin < 0) continue;
    const Tensor dpart = dy.col_range(part.begin, part.end);
    linear_backward_input(s, dpart, part.lora_b, lora_part(part, da));
    linear_backward_weight(s, dpart, lora_part(part, a), part.dlora_b);
  }
}

}  // namespace

int64_t ffn_blocks(const Stream& stream, int64_t columns, int64_t hidden, int64_t tokens) {
  // gate and up, h and its dropped copy (or dh and what LoRA's backward takes); the tokens and the sums.
  const int64_t row_bytes = (4 * columns + 2 * hidden) * dtype_bytes(DType::kF32);
  return std::max<int64_t>(1, tokens / rows_in_cache(stream, row_bytes, kFewest));
}

int64_t ffn_blocks(const Pass& pass, const LayerParameters& p) {
  if (p.down.dweight.cols > 0 || p.gate_up.joined_columns() + p.down.joined_columns() > 0) return 1;
  return ffn_blocks(pass.stream, p.down.base.in, p.down.base.out, pass.batch.padded);
}

void ffn_forward_in_blocks(const Pass& pass, int64_t layer, const LayerParameters& p, const LayerSaved& saved,
                           const Tensor& x, const Tensor& dropped, const Tensor& residual, const Tensor& f,
                           const Meanwhile& meanwhile) {
  Stream& s = pass.stream;
  const Batch& b = pass.batch;
  const bool alone = pass.tp.size() == 1;
  const int64_t columns = p.down.base.in;
  const int64_t r = p.down.lora_columns();
  const Tensor gate_up = saved.gate_up.row_range(0, b.padded);
  const Tensor a = saved.a_gate_up.row_range(0, b.padded);
  const Tensor a_down = saved.a_down.row_range(0, b.slice);
  const bool branch = p.gate_up.lora_columns() > 0;
  const Tensor mine = alone ? a : pass.ws.lora_slice.leading(x.rows, p.gate_up.lora_columns());
  if (branch) {
    const PhaseScope phase(s, Phase::kLora);
    lora_down_forward(s, {dropped, p.gate_up.lora_a, lora_scale(pass), mine});
  }
  const Tensor all = pass.tp.start_gather(s, x, pass.ws.gathered.leading(b.padded, x.cols));
  if (meanwhile) meanwhile();
  pass.tp.finish(s);
  if (branch) pass.tp.gather(s, mine, a);

  // The sums of a block take the place of the gathered tokens that they come from.
  const Tensor partial = alone ? f : pass.ws.gathered.leading(b.padded, f.cols);
  const Tensor a_partial = alone ? a_down : pass.ws.lora_full.leading(b.padded, r);
  const Dropout mask = pass.full_dropout(layer, DropoutSite::kDown, p.down.column0);
  for_blocks(pass, p, [&](const Range& rows, const auto& at) {
    const Tensor h = pass.ws.wide2.leading(rows.size(), columns);
    const Tensor second = drops(r, mask) ? pass.ws.wide.leading(rows.size(), columns) : Tensor{};
    gate_up_rows(pass, p.gate_up, at(all), at(a), at(gate_up));
    swiglu_forward(s, at(gate_up), h, {mask.rows(rows.begin, rows.end), second});
    {
      const PhaseScope phase(s, Phase::kGemm);
      linear_forward(s, p.down.base, Beside(h, h.cols), at(partial), pass.scratch);
    }
    if (r == 0) return;
    const PhaseScope phase(s, Phase::kLora);
    lora_down_forward(s, {second.cols > 0 ? second : h, p.down.lora_a, lora_scale(pass), at(a_partial)});
    if (alone) linear_forward(s, at(a_down), p.down.lora_b, at(f), 1.0F, 1.0F);
  });
  pass.tp.start_reduce_scatter(s, partial, f);
  pass.tp.finish(s);
  if (r > 0 && !alone) {
    const PhaseScope phase(s, Phase::kLora);
    pass.tp.reduce_scatter(s, a_partial, a_down);
    linear_forward(s, a_down, p.down.lora_b, f, 1.0F, 1.0F);
  }
  if (residual.present()) add(s, residual, f);
}

Tensor ffn_backward_in_blocks(const Pass& pass, int64_t layer, const LayerParameters& p,
                              const LayerSaved& saved, const Tensor& df, const Tensor& dropped,
                              const Tensor& dx, const Tensor& through_a) {
  Stream& s = pass.stream;
  const Batch& b = pass.batch;
  const bool alone = pass.tp.size() == 1;
  const int64_t r = p.down.lora_columns();
  const Tensor gate_up = saved.gate_up.row_range(0, b.padded);
  const Tensor a = saved.a_gate_up.row_range(0, b.padded);
  const Tensor mine = pass.ws.lora_slice.leading(b.slice, r);
  const Tensor all = pass.tp.start_gather(s, df, pass.ws.gathered.leading(b.padded, df.cols));
  if (r > 0) {
    const PhaseScope phase(s, Phase::kLora);
    linear_backward_weight(s, df, saved.a_down.row_range(0, b.slice), p.down.dlora_b);
    linear_backward_input(s, df, p.down.lora_b, mine);
  }
  pass.tp.finish(s);
  const Tensor da_down = r > 0 ? pass.tp.gather(s, mine, pass.ws.lora_full.leading(b.padded, r)) : Tensor{};

  Arena::Scope scope(pass.scratch);
  const Tensor da = pass.scratch.allocate(b.padded, p.gate_up.lora_columns(), df.dtype);
  // Again each block's sums stand where what they come from stood, which may be df itself.
  const Tensor partial = alone ? dx : pass.ws.gathered.leading(b.padded, dx.cols);
  const Dropout mask = pass.full_dropout(layer, DropoutSite::kDown, p.down.column0);
  for_blocks(pass, p, [&](const Range& rows, const auto& at) {
    const Tensor dh = pass.ws.wide.leading(rows.size(), p.down.base.in);
    {
      const PhaseScope phase(s, Phase::kGemm);
      linear_backward_input(s, p.down.base, at(all), Beside(dh, dh.cols), pass.scratch);
    }
    LoraBranch lora;
    if (r > 0)
      lora = {at(da_down), p.down.lora_a, lora_scale(pass), mask.rows(rows.begin, rows.end), p.down.dlora_a};
    swiglu_backward(s, {dh, at(gate_up), at(gate_up), lora}, pass.scratch);
    gate_up_rows_backward(pass, p.gate_up, at(gate_up), at(a), at(partial), at(da));
  });
  pass.tp.start_reduce_scatter(s, partial, dx);
  pass.tp.finish(s);
  if (p.gate_up.lora_columns() == 0) return {};
  const PhaseScope phase(s, Phase::kLora);
  const LoraBranch branch{
      pass.tp.reduce_scatter(s, da, pass.ws.lora_slice.leading(b.slice, p.gate_up.lora_columns())),
      p.gate_up.lora_a,
      lora_scale(pass),
      {},
      p.gate_up.dlora_a};
  lora_weight_gradient(s, branch, dropped);
  lora_input_gradient(s, branch, through_a);
  return through_a;
}

int64_t ffn_blocks_scratch_bytes(const Device& device, const PescConfig& pesc, int64_t padded) {
  if (device.kind == DeviceKind::kCuda || pesc.mode == TrainMode::kFull) return 0;
  int64_t columns = 0;
  for (const Linear linear : pesc.lora.targets)
    if (linear == Linear::kGate || linear == Linear::kUp) columns += pesc.lora.rank;
  Arena arena = Arena::planning("FFN blocks scratch");
  (void)arena.allocate(padded, columns);
  return arena.peak();
}

}  // namespace pesc
