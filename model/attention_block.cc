#include "model/attention_block.h"

#include <cmath>
#include <numbers>

#include "model/lora_linear.h"
#include "ops/attention.h"
#include "ops/dropout.h"
#include "ops/head_norm.h"
#include "ops/reduce.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"

namespace pesc {
namespace {

struct Heads {  // this rank's, out of the width of the fused qkv weight
  int64_t q, kv, dim;
  Heads(const ForwardContext& ctx, const LayerParameters& p)
      : q(p.o.base.in / ctx.model.head_dim),
        kv((p.qkv.base.out / ctx.model.head_dim - q) / 2),
        dim(ctx.model.head_dim) {}
  [[nodiscard]] Tensor q_of(const Tensor& qkv) const { return qkv.col_range(0, q * dim); }
  [[nodiscard]] Tensor k_of(const Tensor& qkv) const { return qkv.col_range(q * dim, (q + kv) * dim); }
  [[nodiscard]] Tensor v_of(const Tensor& qkv) const {
    return qkv.col_range((q + kv) * dim, (q + 2 * kv) * dim);
  }
  [[nodiscard]] Tensor rotated(const Tensor& qkv) const { return qkv.col_range(0, (q + kv) * dim); }
  [[nodiscard]] Tensor q_rstd(const Tensor& rstd) const { return rstd.col_range(0, q); }
  [[nodiscard]] Tensor k_rstd(const Tensor& rstd) const { return rstd.col_range(q, q + kv); }
  [[nodiscard]] AttentionShape shape() const {
    return {q, kv, dim, static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)))};
  }
};

enum class Qkv {
  kFresh,  // as the GEMM wrote it
  kKept,   // as the forward left it: q and k rotated in place, or with norms of q and k as the GEMM wrote it
};

// q and k as the attention reads them, [rows, (HQ + HK) D]: rotated where the layer rotates, and before that
// normed where the family does. Without the norms they take the place of those in qkv. With them they stand
// in ws.qk, with rows as far apart as those of qkv, as a library may ask for: the norm's backward reads what
// the GEMM wrote, and what is in ws.qk is made again for each layer's backward.
Tensor queries_and_keys(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                        const RopeTables& rope, const Heads& heads, const Tensor& qkv, Qkv state) {
  Tensor qk = qkv;
  if (p.q_norm.cols > 0) {
    qk = ctx.ws.qk.row_range(0, qkv.rows);
    const Tensor rstd = ctx.ws.rstd_qk.row_range(0, qkv.rows);
    const float eps = static_cast<float>(ctx.model.rms_norm_eps);
    head_norm_forward(ctx.stream, {heads.q_of(qkv), p.q_norm, eps, heads.q_of(qk), heads.q_rstd(rstd)});
    head_norm_forward(ctx.stream, {heads.k_of(qkv), p.k_norm, eps, heads.k_of(qk), heads.k_rstd(rstd)});
  } else if (state == Qkv::kKept) {
    return qk;
  }
  if (ctx.model.rotates(layer))
    pesc::rope(ctx.stream, heads.rotated(qk), ctx.batch.positions, rope.cos, rope.sin,
               RopeDirection::kForward);
  return qk;
}

// The gradient of q and k as the attention read them becomes that of what the GEMM wrote, in place. REQUIRES:
// queries_and_keys of this layer ran last.
void queries_and_keys_backward(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                               const RopeTables& rope, const Heads& heads, const Tensor& qkv,
                               const Tensor& dqkv) {
  if (ctx.model.rotates(layer))
    pesc::rope(ctx.stream, heads.rotated(dqkv), ctx.batch.positions, rope.cos, rope.sin,
               RopeDirection::kBackward);
  if (p.q_norm.cols == 0) return;
  const Tensor rstd = ctx.ws.rstd_qk.row_range(0, qkv.rows);
  const Tensor dq = heads.q_of(dqkv);
  const Tensor dk = heads.k_of(dqkv);
  head_norm_backward(ctx.stream, {dq, heads.q_of(qkv), p.q_norm, heads.q_rstd(rstd), dq, p.dq_norm});
  head_norm_backward(ctx.stream, {dk, heads.k_of(qkv), p.k_norm, heads.k_rstd(rstd), dk, p.dk_norm});
}

void store_in_cache(const ForwardContext& ctx, const Tensor& k, const Tensor& v, const Tensor& k_cache,
                    const Tensor& v_cache) {
  for (const AttentionSegment& s : ctx.batch.segments) {
    const int64_t to = s.kv_begin + s.kv_len - s.q_len;
    copy(ctx.stream, k.row_range(s.q_begin, s.q_begin + s.q_len), k_cache.row_range(to, to + s.q_len));
    copy(ctx.stream, v.row_range(s.q_begin, s.q_begin + s.q_len), v_cache.row_range(to, to + s.q_len));
  }
}

// The attention's output and lse from rotated q, k and v, in memory or in a layer's cache.
void attend(const ForwardContext& ctx, const AttentionForward& args) {
  {
    const PhaseScope phase(ctx.stream, Phase::kAttention);
    attention_forward(ctx.stream, args, ctx.scratch);
  }
  fill_zero(ctx.stream, args.out.row_range(ctx.batch.tokens, ctx.batch.padded));
}

// On one rank it stands beside the attention's output.
Tensor saved_a_o(const ForwardContext& ctx, const LayerParameters& p, const LayerSaved& saved) {
  const int64_t a_columns = concat_input_columns(p.o, ctx.tp.size());
  if (a_columns == 0) return saved.a_o.row_range(0, ctx.batch.slice);
  return ConcatView(saved.attention, ctx.batch.padded, p.o.base.in, a_columns).a;
}

}  // namespace

std::vector<double> rope_inverse_frequencies(const RopeConfig& rope, int64_t head_dim) {
  std::vector<double> freq(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < freq.size(); ++i) {
    double f = std::pow(rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    if (rope.kind == RopeKind::kLinear) f /= rope.factor;
    if (rope.kind == RopeKind::kLlama3) {
      // Long wavelengths are slowed by `factor`, short ones kept, those between blended.
      const double original = static_cast<double>(rope.original_max_positions);
      const double wavelength = 2.0 * std::numbers::pi / f;
      const double low = original / rope.low_freq_factor;
      const double high = original / rope.high_freq_factor;
      if (wavelength > low) {
        f /= rope.factor;
      } else if (wavelength >= high) {
        const double smooth =
            (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
        f = (1.0 - smooth) * f / rope.factor + smooth * f;
      }
    }
    freq[i] = f;
  }
  return freq;
}

RopeTables RopeTables::allocate(const ModelConfig& model, int64_t positions, Arena& arena) {
  RopeTables t;
  t.cos = arena.allocate(positions, model.head_dim / 2);
  t.sin = arena.allocate(positions, model.head_dim / 2);
  return t;
}

void RopeTables::fill(Stream& stream, const ModelConfig& model) const {
  rope_table(stream, rope_inverse_frequencies(model.rope, model.head_dim), cos, sin);
}

KvCache KvCache::allocate(const ModelConfig& model, const Mesh& mesh, int64_t slots, int64_t max_length,
                          DType compute, Arena& arena) {
  KvCache cache;
  cache.max_length = max_length;
  const int64_t columns = std::max<int64_t>(model.num_key_value_heads / mesh.tp(), 1) * model.head_dim;
  for (int64_t i = 0; i < model.num_hidden_layers; ++i) {
    cache.k.push_back(arena.allocate(slots * max_length, columns, compute));
    cache.v.push_back(arena.allocate(slots * max_length, columns, compute));
  }
  return cache;
}

void attention_block_forward(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                             const RopeTables& rope, const LayerSaved& saved, const KvCache* cache) {
  Stream& s = ctx.stream;
  const Batch& b = ctx.batch;
  const Heads heads(ctx, p);
  const float eps = static_cast<float>(ctx.model.rms_norm_eps);
  const Tensor x = saved.x.row_range(0, b.slice);
  const ConcatView h(ctx.ws.h, b.slice, x.cols, p.qkv.concat_columns());
  const Tensor qkv = saved.qkv.row_range(0, b.padded);
  const ConcatView attended(saved.attention, b.padded, p.o.base.in, concat_input_columns(p.o, ctx.tp.size()));
  const Tensor& out = attended.x;

  const Dropout mask = ctx.slice_dropout(layer, DropoutSite::kQkv);
  const Tensor second =
      drops(p.qkv.lora_columns(), mask) ? ctx.ws.dropout_out.row_range(0, b.slice) : Tensor{};
  const Arena::Scope scope(ctx.scratch);
  const Fp8Rows codes = column_input_codes(ctx, p.qkv, b.slice);
  // Of h its codes and its dropped copy are read, where there are both.
  const bool unread = codes.present() && second.cols > 0;
  rmsnorm_forward(s, {.x = x,
                      .residual = {},
                      .x_out = {},
                      .weight = p.input_norm,
                      .eps = eps,
                      .y = unread ? Tensor{} : h.x,
                      .rstd = saved.rstd1.col_range(0, b.slice),
                      .dropped = {mask, second},
                      .codes = codes});
  column_forward(ctx, p.qkv, h, codes, second.cols > 0 ? second : h.x, qkv,
                 saved.a_qkv.row_range(0, b.padded));
  const Tensor qk = queries_and_keys(ctx, layer, p, rope, heads, qkv, Qkv::kFresh);

  AttentionForward args{heads.shape(),
                        b.segments,
                        heads.q_of(qk),
                        heads.k_of(qk),
                        heads.v_of(qkv),
                        out,
                        saved.lse.col_range(0, b.padded)};
  if (cache != nullptr) {
    const auto i = static_cast<size_t>(layer);
    store_in_cache(ctx, args.k, args.v, cache->k[i], cache->v[i]);
    args.k = cache->k[i];
    args.v = cache->v[i];
    args.lse = {};
  }
  attend(ctx, args);

  const Dropout mask_o = ctx.full_dropout(layer, DropoutSite::kO, p.o.column0);
  Tensor dropped = out;
  if (drops(p.o.lora_columns(), mask_o)) {
    const PhaseScope phase(s, Phase::kLora);
    dropped = ctx.ws.ffn_grad.leading(out.rows, out.cols);
    dropout(s, mask_o, out, dropped);
  }
  const Tensor a_o = saved.a_o.cols > 0 ? saved.a_o.row_range(0, b.slice) : saved_a_o(ctx, p, saved);
  row_forward(ctx, p.o, attended, dropped, x, saved.x2.row_range(0, b.slice), a_o);
}

void recompute_attention(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                         const RopeTables& rope, const LayerSaved& saved) {
  const Batch& b = ctx.batch;
  const Heads heads(ctx, p);
  const Tensor qkv = saved.qkv.row_range(0, b.padded);
  const ConcatView attended(saved.attention, b.padded, p.o.base.in, concat_input_columns(p.o, ctx.tp.size()));
  const Tensor qk = queries_and_keys(ctx, layer, p, rope, heads, qkv, Qkv::kKept);
  attend(ctx, {heads.shape(), b.segments, heads.q_of(qk), heads.k_of(qk), heads.v_of(qkv), attended.x,
               saved.lse.col_range(0, b.padded)});
  if (attended.a.cols == 0) return;
  const PhaseScope phase(ctx.stream, Phase::kLora);
  copy(ctx.stream, saved.a_o.row_range(0, b.slice), attended.a);
}

void attention_block_backward(const ForwardContext& ctx, int64_t layer, const LayerParameters& p,
                              const RopeTables& rope, const LayerSaved& saved, const Tensor& dx) {
  Stream& s = ctx.stream;
  const Batch& b = ctx.batch;
  const Heads heads(ctx, p);
  const Tensor qkv = saved.qkv.row_range(0, b.padded);
  const ConcatView attended(saved.attention, b.padded, p.o.base.in, concat_input_columns(p.o, ctx.tp.size()));
  const Tensor& out = attended.x;
  // Rows as far apart as those of `out`, which a library may ask for.
  const ConcatView dattended(ctx.ws.ffn_act, b.padded, p.o.base.in, concat_input_columns(p.o, ctx.tp.size()));
  const Tensor& dout = dattended.x;
  const LoraBranch lora = row_backward(ctx, p.o, ctx.full_dropout(layer, DropoutSite::kO, p.o.column0), dx,
                                       out, saved_a_o(ctx, p, saved), dattended);
  if (lora.dout.cols > 0) {
    const PhaseScope phase(s, Phase::kLora);
    lora_down_backward(s, lora, out, dout, ctx.scratch);
  }

  const Tensor qk = queries_and_keys(ctx, layer, p, rope, heads, qkv, Qkv::kKept);
  const Tensor dqkv = ctx.ws.ffn_grad.leading(qkv.rows, qkv.cols);
  {
    const PhaseScope phase(s, Phase::kAttention);
    attention_backward(
        s,
        {heads.shape(), b.segments, heads.q_of(qk), heads.k_of(qk), heads.v_of(qkv), out,
         saved.lse.col_range(0, b.padded), dout, heads.q_of(dqkv), heads.k_of(dqkv), heads.v_of(dqkv)},
        ctx.scratch);
  }
  fill_zero(s, dqkv.row_range(b.tokens, b.padded));
  queries_and_keys_backward(ctx, layer, p, rope, heads, qkv, dqkv);

  const Tensor x = saved.x.row_range(0, b.slice);
  const Tensor rstd = saved.rstd1.col_range(0, b.slice);
  const Tensor h = ctx.ws.h.leading(b.slice, x.cols);
  const ConcatView dh(ctx.ws.dslice, b.slice, x.cols, p.qkv.concat_columns());
  const Dropout mask = ctx.slice_dropout(layer, DropoutSite::kQkv);
  const bool two = drops(p.qkv.lora_columns(), mask);
  const Tensor dropped = two ? ctx.ws.dropout_out.row_range(0, b.slice) : h;
  rmsnorm_apply(s, x, p.input_norm, rstd, two ? Tensor{} : h, {mask, two ? dropped : Tensor{}});
  const Tensor through_a = column_backward(ctx, p.qkv,
                                           {.dy = dqkv,
                                            .x = h,
                                            .dropped = dropped,
                                            .a = saved.a_qkv.row_range(0, b.padded),
                                            .dx = dh,
                                            .through_a = ctx.ws.adapter_dinput.row_range(0, b.slice)});
  rmsnorm_backward(s, {dh.x, x, p.input_norm, rstd, dx, p.dinput_norm, {mask, through_a}, {}});
}

}  // namespace pesc
