#include "model/head.h"

#include <algorithm>

#include "ops/core/device.h"
#include "ops/cross_entropy.h"
#include "ops/gemm.h"
#include "ops/reduce.h"

namespace pesc {

void head_loss(const ForwardContext& ctx, const ModelParameters& p, const Tensor& x, HeadMode mode,
               float grad_scale, const Tensor& dx, const HeadResult& result) {
  Stream& s = ctx.stream;
  Communicator& tp = ctx.tp.communicator();
  const Workspace& ws = ctx.ws;
  const Batch& b = ctx.batch;
  const bool grad = mode == HeadMode::kLossAndGradient;
  const PhaseScope phase(s, Phase::kHead);
  if (grad) fill_zero(s, dx);
  const int64_t chunk = ws.head_rows.rows;
  for (int64_t begin = 0; begin < b.supervised(); begin += chunk) {
    const int64_t n = std::min(chunk, b.supervised() - begin);
    const Tensor index = b.rows.col_range(begin, begin + n);
    const Tensor targets = b.targets.col_range(begin, begin + n);
    const Tensor rows = ws.head_rows.row_range(0, n);
    const Tensor logits = ws.logits.leading(n, p.vocab.size());
    const Tensor max = ws.max.col_range(0, n);
    const Tensor sums = ws.sums.leading(2, n);
    const Tensor loss = ws.loss.col_range(0, n);
    gather_rows(s, x, index, rows);
    linear_forward(s, rows, p.head, logits);
    cross_entropy_max(s, logits, max);
    if (tp.size() > 1) tp.all_reduce_max(s, max);
    cross_entropy_sums(s, logits, targets, p.vocab.begin, max, sums);
    if (tp.size() > 1) tp.all_reduce_sum(s, sums);
    if (grad) {
      cross_entropy_grad(s, {logits, targets, p.vocab.begin, max, sums, grad_scale, loss});
      const Tensor drows = ws.head_drows.row_range(0, n);
      linear_backward_input(s, logits, p.head, drows);
      scatter_add_rows(s, drows, index, dx);
      if (p.dhead.cols > 0) linear_backward_weight(s, logits, rows, p.dhead);
    } else {
      cross_entropy_loss(s, sums, loss);
    }
    sum(s, loss, result.loss_sum);
    if (result.row_losses != nullptr) {
      const size_t at = result.row_losses->size();
      result.row_losses->resize(at + static_cast<size_t>(n));
      copy_to_host(s, loss, result.row_losses->data() + at);
    }
  }
}

std::vector<float> head_logits(const ForwardContext& ctx, const ModelParameters& p, const Tensor& rows) {
  Stream& s = ctx.stream;
  Communicator& tp = ctx.tp.communicator();
  const int64_t n = rows.rows;
  const int64_t vocab = ctx.model.vocab_size;
  const int64_t mine = p.vocab.size();
  const int64_t piece = split_range(vocab, tp.size(), 0).size();
  std::vector<float> all(static_cast<size_t>(n * vocab));
  // Row by row chunks, through a gather of equal pieces: [tp, rows, piece].
  const int64_t chunk = std::max<int64_t>(1, ctx.ws.logits.rows / std::max(tp.size(), 1));
  const Tensor flat = ctx.ws.logits.reshaped(1, ctx.ws.logits.size());
  std::vector<float> host;
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t c = std::min(chunk, n - begin);
    Tensor gathered = flat.col_range(0, tp.size() * c * piece);
    const Tensor own = gathered.col_range(tp.rank() * c * piece, (tp.rank() + 1) * c * piece);
    linear_forward(s, rows.row_range(begin, begin + c), p.head, own.reshaped(c, piece).col_range(0, mine));
    if (tp.size() > 1) tp.all_gather(s, own, gathered);
    copy_to_host(s, gathered, host);
    for (int r = 0; r < tp.size(); ++r) {
      const Range range = split_range(vocab, tp.size(), r);
      for (int64_t i = 0; i < c; ++i) {
        const float* from = host.data() + (r * c + i) * piece;
        std::copy_n(from, range.size(), all.data() + (begin + i) * vocab + range.begin);
      }
    }
  }
  return all;
}

}  // namespace pesc
