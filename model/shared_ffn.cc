// F columns of the FFN on this rank, H hidden, P gathered tokens, S of the slice. Where the tp group has one
// rank the gathered tokens are the slice's own and the partial sums the output.
#include "model/shared_ffn.h"

#include <algorithm>

#include "ops/core/threads.h"
#include "ops/swiglu.h"

namespace pesc {
namespace {

// GEMMs of fewer rows spend too much of their time on the weight (OpenBLAS brings it into panels for
// each).
constexpr int64_t kFewest = 128;

template <class Fn>
void for_blocks(int64_t tokens, int64_t blocks, Fn&& fn) {
  for (int64_t i = 0; i < blocks; ++i)
    fn(TokenBlock{{tokens * i / blocks, tokens * (i + 1) / blocks}, tokens});
}

}  // namespace

int64_t ffn_blocks(const Stream& stream, int64_t columns, int64_t hidden, int64_t tokens) {
  // gate and up, h and its dropped copy (or dh and what LoRA's backward takes); the tokens and the sums.
  const int64_t row_bytes = (4 * columns + 2 * hidden) * dtype_bytes(DType::kF32);
  return std::max<int64_t>(1, tokens / rows_in_cache(stream, row_bytes, kFewest));
}

int64_t ffn_blocks(const ForwardContext& ctx, const LayerParameters& p) {
  if (p.down.dweight.cols > 0) return 1;
  // The sums of a block take the place of the gathered tokens that they come from, row for row.
  if (p.gate_up.concat_columns() > 0) return 1;
  return ffn_blocks(ctx.stream, p.down.base.in, p.down.base.out, ctx.batch.padded);
}

LayerSaved ffn_rows(const LayerSaved& saved, const BatchChunk& chunk) {
  const Range& rows = chunk.rows;
  const int64_t tp = rows.size() == 0 ? 1 : chunk.batch.padded / rows.size();
  LayerSaved some;
  some.gate_up = saved.gate_up.row_range(rows.begin * tp, rows.end * tp);
  some.a_gate_up = saved.a_gate_up.row_range(rows.begin * tp, rows.end * tp);
  some.a_down = saved.a_down.row_range(rows.begin, rows.end);
  return some;
}

void shared_ffn_forward(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                        const LayerSaved& saved, const SharedFfnForward& args,
                        const OverlappedWork& overlapped_work) {
  const Batch& b = ctx.batch;
  const Workspace& ws = ctx.ws;
  const int64_t columns = p.down.base.in;
  ColumnForward gate_up =
      column_forward_gather(ctx, p.gate_up, args.x, args.dropped, saved.gate_up.row_range(0, b.padded),
                            saved.a_gate_up.row_range(0, b.padded), overlapped_work);
  gate_up.codes = args.codes;
  RowForward down{args.residual, args.f, saved.a_down.row_range(0, b.slice)};
  const Dropout mask = ctx.full_dropout(layer, DropoutSite::kDown, p.down.column0);
  for_blocks(b.padded, ffn_blocks(ctx, p), [&](const TokenBlock& block) {
    const int64_t n = block.rows.size();
    const ConcatView h(ws.ffn_act, n, columns, concat_input_columns(p.down, ctx.tp.size()));
    const Tensor second = drops(p.down.lora_columns(), mask) ? ws.ffn_grad.leading(n, columns) : Tensor{};
    column_forward_block(ctx, p.gate_up, block, gate_up);
    const Arena::Scope scope(ctx.scratch);
    down.codes = p.down.base.input_codes(ctx.scratch, n);
    // Of h its codes and its dropped copy are read, where there are both.
    const bool unread = down.codes.present() && second.cols > 0;
    swiglu_forward(ctx.stream, block.of(gate_up.y), unread ? Tensor{} : h.x,
                   {mask.rows(block.rows.begin, block.rows.end), second}, down.codes);
    row_forward_block(ctx, p.down, block, h, second.cols > 0 ? second : h.x, down);
  });
}

Tensor shared_ffn_backward(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                           const LayerSaved& saved, const SharedFfnBackward& args) {
  const Batch& b = ctx.batch;
  const Workspace& ws = ctx.ws;
  const int64_t columns = p.down.base.in;
  const int64_t blocks = ffn_blocks(ctx, p);
  const Tensor gate_up = saved.gate_up.row_range(0, b.padded);  // and its gradient
  const Tensor h = ws.ffn_act.leading(b.padded, columns);
  if (p.down.dweight.cols > 0) swiglu_forward(ctx.stream, gate_up, h);
  RowBackward down = row_backward_gather(ctx, p.down, args.df, saved.a_down.row_range(0, b.slice));

  Arena::Scope scope(ctx.scratch);
  // In blocks ws.lora_full holds what the blocks to come still read of `down`.
  const int64_t r = p.gate_up.lora_columns();
  const Tensor da =
      blocks > 1 ? ctx.scratch.allocate(b.padded, r, args.df.dtype) : ws.lora_full.leading(b.padded, r);
  ColumnBackward back{.dy = gate_up,
                      .x = args.x,
                      .dropped = args.dropped,
                      .a = saved.a_gate_up.row_range(0, b.padded),
                      .da = da,
                      .dx = args.dx,
                      .through_a = args.through_a};
  const Dropout mask = ctx.full_dropout(layer, DropoutSite::kDown, p.down.column0);
  for_blocks(b.padded, blocks, [&](const TokenBlock& block) {
    const ConcatView dh(ws.ffn_grad, block.rows.size(), columns, p.down.concat_columns());
    const Tensor rows = block.of(gate_up);
    const LoraBranch lora =
        row_backward_block(ctx, p.down, block, down, mask.rows(block.rows.begin, block.rows.end), h, dh);
    const Arena::Scope of_block(ctx.scratch);
    back.codes = p.gate_up.base.output_grad_codes(ctx.scratch, rows.rows);
    swiglu_backward(ctx.stream, {dh.x, rows, rows, lora, back.codes}, ctx.scratch);
    column_backward_block(ctx, p.gate_up, block, back);
  });
  return column_backward_finish(ctx, p.gate_up, back);
}

int64_t ffn_blocks_scratch_bytes(const Device& device, const PescConfig& pesc, int64_t padded) {
  if (device.kind == DeviceKind::kCuda || pesc.mode == TrainMode::kFull) return 0;
  int64_t columns = 0;
  for (const Linear linear : pesc.lora.target_modules)
    if (linear == Linear::kGate || linear == Linear::kUp) columns += pesc.lora.r;
  Arena arena = Arena::planning("FFN blocks scratch");
  (void)arena.allocate(padded, columns);
  return arena.peak();
}

}  // namespace pesc
