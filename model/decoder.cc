#include "model/decoder.h"

#include <algorithm>
#include <utility>

#include "model/moe_layer.h"
#include "model/shared_ffn.h"
#include "ops/embedding.h"
#include "ops/gemm.h"
#include "ops/low_rank.h"
#include "ops/reduce.h"
#include "ops/rmsnorm.h"
#include "ops/router.h"

namespace pesc {
namespace {

struct Arenas {
  Arena weights, compute_weights, optimizer, activations, workspace, scratch, dispatch, cache;

  static Arenas planning() {
    return {Arena::planning("weights"),   Arena::planning("bf16 compute weights"),
            Arena::planning("optimizer"), Arena::planning("activations"),
            Arena::planning("workspace"), Arena::planning("scratch"),
            Arena::planning("dispatch"),  Arena::planning("kv cache")};
  }
  static Arenas real(const Arenas& plan, Device d) {
    const auto like = [d](const Arena& a) { return Arena(a.name(), d, a.used()); };
    return {like(plan.weights),   like(plan.compute_weights), like(plan.optimizer), like(plan.activations),
            like(plan.workspace), like(plan.scratch),         like(plan.dispatch),  like(plan.cache)};
  }
  [[nodiscard]] std::vector<ArenaSize> sizes() const {
    std::vector<ArenaSize> all;
    for (const Arena* a :
         {&weights, &compute_weights, &optimizer, &activations, &workspace, &scratch, &dispatch, &cache})
      all.push_back({a->name(), a->is_planning() ? a->used() : a->capacity()});
    return all;
  }
};

}  // namespace

// Everything a rank keeps, laid out in arenas by the same code when planning and when running.
struct Decoder::Memory {
  Arenas arenas;
  ModelParameters parameters;
  Saved saved;
  Workspace ws;
  RopeTables rope;
  BatchBuffers batches;
  KvCache cache;
  Tensor loss_sum;  // [1, 1] F64
  Tensor scalar;    // [1, 1] F64

  Memory(const ModelConfig& m, const PescConfig& p, const Mesh& mesh, const DecoderOptions& o,
         const Sizes& sizes, Arenas&& in)
      : arenas(std::move(in)),
        parameters(m, p, mesh, o.precision(),
                   {arenas.weights, arenas.compute_weights,
                    o.purpose == Purpose::kTraining ? &arenas.optimizer : nullptr}),
        saved(allocate_saved({m, p, mesh, parameters, sizes}, o.purpose, o.recompute, arenas.activations)),
        ws(allocate_workspace({m, p, mesh, parameters, sizes}, o.capacity, arenas.workspace)),
        rope(RopeTables::allocate(m, o.max_positions, arenas.weights)),
        batches(o.capacity.max_tokens, mesh, sizes.chunks, arenas.workspace),
        cache(o.cache_slots > 0
                  ? KvCache::allocate(m, mesh, o.cache_slots, o.max_positions, o.compute, arenas.cache)
                  : KvCache{}),
        loss_sum(arenas.workspace.allocate(1, 1, DType::kF64)),
        scalar(arenas.workspace.allocate(1, 1, DType::kF64)) {
    // In a real arena all of the scratch is the ops' to take; in a plan it is counted here.
    if (arenas.scratch.is_planning()) {
      (void)arenas.scratch.allocate(1, scratch_bytes({m, p, mesh, parameters, sizes}, o.capacity, o.device),
                                    DType::kU8);
      (void)arenas.dispatch.allocate(1, dispatch_scratch_bytes(m, p, sizes), DType::kU8);
    }
  }

  static std::unique_ptr<Memory> plan(const ModelConfig& m, const PescConfig& p, const Mesh& mesh,
                                      const DecoderOptions& o) {
    return std::make_unique<Memory>(m, p, mesh, o, Sizes(o.capacity, p, mesh, o.compute), Arenas::planning());
  }
  static std::unique_ptr<Memory> allocate(const ModelConfig& m, const PescConfig& p, const Mesh& mesh,
                                          const DecoderOptions& o) {
    const auto planned = plan(m, p, mesh, o);
    return std::make_unique<Memory>(m, p, mesh, o, Sizes(o.capacity, p, mesh, o.compute),
                                    Arenas::real(planned->arenas, o.device));
  }
};

std::vector<ArenaSize> Decoder::plan(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                                     const DecoderOptions& options) {
  return Memory::plan(model, pesc, mesh, options)->arenas.sizes();
}

Decoder::Decoder(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh, const Groups& groups,
                 const DecoderOptions& options)
    : model_(model),
      pesc_(pesc),
      mesh_(mesh),
      groups_(groups),
      options_(options),
      stream_(options.device),
      tp_(groups.tp),
      memory_(Memory::allocate(model, pesc, mesh, options)),
      comm_{.scratch = memory_->arenas.dispatch, .routed = {}, .ready = {}, .arrived = {}, .combined = {}} {
  if (has_comm_stream(mesh, options)) stream_.open_comm_stream();
  set_gemm_trials(stream_, &memory_->arenas.scratch);
  if (pesc.mode == TrainMode::kPesc) {
    const Sizes sizes(options.capacity, pesc, mesh, options.compute);
    const MoeConfig& moe = pesc.moe;
    std::unique_ptr<WeightGatherer> gatherer;
    if (sizes.weight_buffers > 0) {
      dispatcher_ = std::make_unique<TokenDispatcher>(moe.num_experts, moe.num_experts_per_tok);
      gatherer = std::make_unique<WeightGatherer>(groups.ep, memory_->ws.adapters);
    } else {
      dispatcher_ = std::make_unique<TokenDispatcher>(groups.ep, moe.num_experts, moe.num_experts_per_tok,
                                                      std::max<int64_t>(1, sizes.capacity));
    }
    adapters_ = std::make_unique<LayerAdapters>(memory_->parameters.layers, std::move(gatherer));
  }
  memory_->rope.fill(stream_, model_);
  fill_zero(stream_, memory_->loss_sum);
}

Decoder::~Decoder() = default;

ModelParameters& Decoder::parameters() {
  return memory_->parameters;
}
const ModelParameters& Decoder::parameters() const {
  return memory_->parameters;
}
Stream& Decoder::stream() {
  return stream_;
}
std::vector<ArenaSize> Decoder::arenas() const {
  return memory_->arenas.sizes();
}

ForwardContext Decoder::context() {
  const ForwardOptions& o = forward_options_;
  return {stream_, tp_,    memory_->ws, memory_->arenas.scratch, comm_, model_, pesc_, batch_,
          o.kind,  o.seed, o.step};
}

// The first layer's input [S, H] from the tokens.
void Decoder::embed(const Tensor& x) {
  Memory& m = *memory_;
  const Tensor partial = tp_.size() == 1 ? x : m.ws.gathered.leading(batch_.padded, model_.hidden_size);
  embedding_forward(stream_, batch_.ids, m.parameters.embedding, m.parameters.vocab.begin, partial);
  tp_.reduce_scatter(stream_, partial, x);
}

void Decoder::forward(const HostBatch& host, const ForwardOptions& options) {
  Memory& m = *memory_;
  batch_ = m.batches.load(stream_, host, m.cache.max_length);
  forward_options_ = options;
  const Sizes sizes(options_.capacity, pesc_, mesh_, options_.compute);
  chunks_.clear();
  for (const Range& rows : chunk_rows(batch_.slice, sizes.chunks)) chunks_.emplace_back(batch_, rows);
  const ForwardContext p = context();

  if (adapters_ != nullptr) adapters_->begin_forward(stream_);
  embed(m.saved.layers.front().x.row_range(0, batch_.slice));
  fill_zero(stream_, m.saved.stats);
  const auto layers = static_cast<int64_t>(m.saved.layers.size());
  for (int64_t i = 0; i < layers; ++i) {
    const Tensor next = i + 1 < layers ? m.saved.layers[static_cast<size_t>(i + 1)].x : m.saved.x_final;
    layer_forward(p, i, options.router_replay, next.row_range(0, batch_.slice), Run::kFirst);
  }
}

void Decoder::layer_forward(const ForwardContext& p, int64_t i, RouterReplay* router_replay,
                            const Tensor& next, Run run) {
  Memory& m = *memory_;
  LayerSaved& saved = m.saved.layers[static_cast<size_t>(i)];
  const LayerParameters& w = m.parameters.layers[static_cast<size_t>(i)];
  attention_block_forward(p, i, w, m.rope, saved, batch_.cached ? &m.cache : nullptr);

  const Tensor x2 = saved.x2.row_range(0, batch_.slice);
  const ConcatView h(m.ws.h, batch_.slice, model_.hidden_size, w.gate_up.concat_columns());
  const Dropout mask = p.slice_dropout(i, DropoutSite::kGateUp);
  const Tensor second =
      drops(w.gate_up.lora_columns(), mask) ? m.ws.dropout_out.row_range(0, batch_.slice) : Tensor{};
  const Tensor dropped = second.cols > 0 ? second : h.x;
  const Arena::Scope scope(m.arenas.scratch);
  const Fp8Rows codes = column_input_codes(p, w.gate_up, batch_.slice);
  rmsnorm_forward(stream_, {.x = x2,
                            .residual = {},
                            .x_out = {},
                            .weight = w.post_norm,
                            .eps = static_cast<float>(model_.rms_norm_eps),
                            .y = h.x,
                            .rstd = saved.rstd2.col_range(0, batch_.slice),
                            .dropped = {mask, second},
                            .codes = codes});
  if (dispatcher_ == nullptr)
    return shared_ffn_forward(p, i, w, saved,
                              {.x = h, .codes = codes, .dropped = dropped, .residual = x2, .f = next});
  const MoeParameters experts = adapters_->forward(stream_, i);
  const MoeLayer moe(p, i, experts, *dispatcher_, chunks_, saved.moe);
  const auto route = [&] { return moe.route(h.x, m.saved.stats.row_range(2 * i, 2 * i + 2), router_replay); };
  const auto ffn = [&](size_t c, const OverlappedWork& overlapped) {
    const auto& [begin, end] = chunks_[c].rows;
    shared_ffn_forward(p.over(chunks_[c].batch), i, w, ffn_rows(saved, chunks_[c]),
                       {.x = h.rows({begin, end}),
                        .codes = codes.rows(begin, end),
                        .dropped = dropped.row_range(begin, end),
                        .f = saved.moe.f.row_range(begin, end)},
                       overlapped);
  };
  // The whole FFN is enqueued before the host waits for the choice and the counts.
  auto output = run == Run::kFirst ? moe.prepare(moe.ffn(x2, next, route, ffn), router_replay)
                                   : moe.ffn(
                                         x2, next, [&] { return moe.keep_plan(); }, ffn);
  // After this layer's tensor-parallel collectives, which would wait for it.
  if (run == Run::kFirst) adapters_->gather_ahead(stream_, i + 1);
  auto dispatched = moe.dispatch(std::move(output));
  adapters_->finish_gather(stream_, i);
  moe.combine(moe.experts(std::move(dispatched)));
}

// What Recompute::kSelective did not keep of layer i, for its attention's backward; and of the layer below,
// whose output is the input of this one. The last layer's attention output is still in its buffer.
void Decoder::recompute_input(const ForwardContext& p, int64_t i) {
  Memory& m = *memory_;
  const LayerSaved& saved = m.saved.layers[static_cast<size_t>(i)];
  if (i + 1 < model_.num_hidden_layers)
    recompute_attention(p, i, m.parameters.layers[static_cast<size_t>(i)], m.rope, saved);
  if (dispatcher_ == nullptr) return;
  const Tensor x = saved.x.row_range(0, batch_.slice);
  if (i == 0) return embed(x);
  LayerSaved& below = m.saved.layers[static_cast<size_t>(i - 1)];
  const Tensor x2 = below.x2.row_range(0, batch_.slice);
  const MoeParameters experts = adapters_->forward(stream_, i - 1);
  const MoeLayer moe(p, i - 1, experts, *dispatcher_, chunks_, below.moe);
  auto dispatched = moe.dispatch(moe.mask(moe.keep_plan(), x2, x));
  adapters_->finish_gather(stream_, i - 1);
  moe.combine(moe.experts(std::move(dispatched)));
}

void Decoder::compute_aux_loss(int64_t tokens, double coef) {
  if (dispatcher_ == nullptr) return;
  Saved& saved = memory_->saved;
  groups_.world.all_reduce_sum(stream_, saved.stats.reshaped(1, saved.stats.size()));
  for (int64_t i = 0; i < saved.aux_loss_grad.rows; ++i) {
    router_aux_loss(stream_, saved.stats.row_range(2 * i, 2 * i + 2), static_cast<double>(tokens),
                    pesc_.moe.num_experts_per_tok, coef, saved.aux_loss.col_range(i, i + 1),
                    saved.aux_loss_grad.row_range(i, i + 1));
  }
}

Tensor Decoder::final_hidden(const ForwardContext& p) {
  Memory& m = *memory_;
  const Tensor x = m.saved.x_final.row_range(0, batch_.slice);
  const Tensor h = m.ws.h.leading(batch_.slice, model_.hidden_size);
  rmsnorm_forward(stream_, {.x = x,
                            .residual = {},
                            .x_out = {},
                            .weight = m.parameters.final_norm,
                            .eps = static_cast<float>(model_.rms_norm_eps),
                            .y = h,
                            .rstd = m.saved.rstd_final.col_range(0, batch_.slice)});
  return p.tp.gather(stream_, h, m.ws.gathered.leading(batch_.padded, model_.hidden_size));
}

void Decoder::loss(HeadMode mode, float grad_scale, std::vector<float>* row_losses) {
  Memory& m = *memory_;
  const ForwardContext p = context();
  const Tensor all = final_hidden(p);
  const Tensor dall = m.ws.gathered_grad.leading(batch_.padded, model_.hidden_size);
  head_loss(p, m.parameters, all, mode, grad_scale, dall, {m.loss_sum, row_losses});
  if (mode == HeadMode::kLoss) return;
  const Tensor dh = tp_.reduce_scatter(stream_, dall, m.ws.dslice.leading(batch_.slice, model_.hidden_size));
  const Tensor dx = m.ws.dx.row_range(0, batch_.slice);
  fill_zero(stream_, dx);
  rmsnorm_backward(stream_, {dh, m.saved.x_final.row_range(0, batch_.slice), m.parameters.final_norm,
                             m.saved.rstd_final.col_range(0, batch_.slice), dx, m.parameters.dfinal_norm});
}

void Decoder::backward(const LayerDone& done) {
  Memory& m = *memory_;
  const ForwardContext p = context();
  const Tensor dx = m.ws.dx.row_range(0, batch_.slice);
  for (int64_t i = model_.num_hidden_layers - 1; i >= 0; --i) layer_backward(p, i, dx, done);
  if (done) done(0);
  if (m.parameters.dembedding.cols > 0) {
    const Tensor all = tp_.gather(stream_, dx, m.ws.gathered.leading(batch_.padded, model_.hidden_size));
    embedding_backward(stream_, batch_.ids, all, m.parameters.vocab.begin, m.parameters.dembedding);
  }
  if (adapters_ != nullptr) adapters_->finish_backward(stream_);
}

void Decoder::layer_backward(const ForwardContext& p, int64_t i, const Tensor& dx, const LayerDone& done) {
  Memory& m = *memory_;
  LayerSaved& saved = m.saved.layers[static_cast<size_t>(i)];
  const LayerParameters& w = m.parameters.layers[static_cast<size_t>(i)];
  // The last layer's activations are still in their buffers, so it needs no recompute. The recomputed output
  // is not read.
  if (options_.recompute == Recompute::kFull && i + 1 < model_.num_hidden_layers)
    layer_forward(p, i, nullptr, m.ws.adapter_dinput.row_range(0, batch_.slice), Run::kRecompute);
  const Tensor x2 = saved.x2.row_range(0, batch_.slice);
  const Tensor rstd = saved.rstd2.col_range(0, batch_.slice);
  const Tensor h = m.ws.h.leading(batch_.slice, model_.hidden_size);
  // Recomputes the FFN's input: h for trainable weights, its dropped copy for LoRA.
  const Dropout mask = p.slice_dropout(i, DropoutSite::kGateUp);
  const bool two = drops(w.gate_up.lora_columns(), mask);
  const Tensor dropped = two ? m.ws.dropout_out.row_range(0, batch_.slice) : h;
  const auto make_ffn_input = [&] {
    rmsnorm_apply(stream_, x2, w.post_norm, rstd, two ? Tensor{} : h, {mask, two ? dropped : Tensor{}});
  };
  const ConcatView dh(m.ws.dslice, batch_.slice, model_.hidden_size, w.gate_up.concat_columns());
  Tensor through_a = m.ws.adapter_dinput.row_range(0, batch_.slice);
  LowRankTerm router_term;
  if (dispatcher_ == nullptr) {
    make_ffn_input();
    if (done && i + 1 < model_.num_hidden_layers) done(i + 1);
    through_a = shared_ffn_backward(p, i, w, saved,
                                    {.df = dx, .x = h, .dropped = dropped, .dx = dh, .through_a = through_a});
  } else {
    const MoeParameters experts = adapters_->backward(stream_, i);
    const MoeLayer moe(p, i, experts, *dispatcher_, chunks_, saved.moe);
    auto dispatched = moe.dispatch_grad(dx);
    make_ffn_input();
    adapters_->finish_gather(stream_, i);
    auto combining = moe.experts_backward(std::move(dispatched));
    adapters_->reduce_grads(stream_, i);
    // What other ranks wait for in this layer is enqueued: now the gradients of the layer above may be
    // reduced.
    if (done && i + 1 < model_.num_hidden_layers) done(i + 1);
    // The gradient of f stands where the gradient of the FFN's input is going to.
    const auto place = [&](size_t c) {
      return dh.rows(chunks_[c].rows).all.leading(chunks_[c].rows.size(), model_.hidden_size);
    };
    auto ffn_done = moe.ffn_backward(std::move(combining), place, [&](size_t c, const Tensor& df) {
      chunk_backward(p, i, c, df, h, dropped, dh);
    });
    if (w.gate_up.lora_columns() == 0) through_a = {};
    router_term = moe.route_backward(std::move(ffn_done), {x2, rstd, w.post_norm},
                                     m.saved.aux_loss_grad.row_range(i, i + 1));
  }
  rmsnorm_backward(stream_, {dh.x, x2, w.post_norm, rstd, dx, w.dpost_norm, {mask, through_a}, router_term});
  if (options_.recompute == Recompute::kSelective) recompute_input(p, i);
  attention_block_backward(p, i, w, m.rope, saved, dx);
}

// The FFN's backward of chunk c from df [rows, H]: dh, and what comes through A, in ws.adapter_dinput.
void Decoder::chunk_backward(const ForwardContext& p, int64_t i, size_t c, const Tensor& df, const Tensor& h,
                             const Tensor& dropped, const ConcatView& dh) {
  Memory& m = *memory_;
  const BatchChunk& chunk = chunks_[c];
  const auto mine = [&chunk](const Tensor& t) { return t.row_range(chunk.rows.begin, chunk.rows.end); };
  (void)shared_ffn_backward(p.over(chunk.batch), i, m.parameters.layers[static_cast<size_t>(i)],
                            ffn_rows(m.saved.layers[static_cast<size_t>(i)], chunk),
                            {.df = df,
                             .x = mine(h),
                             .dropped = mine(dropped),
                             .dx = dh.rows(chunk.rows),
                             .through_a = mine(m.ws.adapter_dinput)});
}

std::vector<float> Decoder::logits(const std::vector<int32_t>& rows) {
  Memory& m = *memory_;
  const ForwardContext p = context();
  const Tensor all = final_hidden(p);
  const int64_t chunk = m.ws.head_rows.rows;
  std::vector<float> out;
  for (size_t begin = 0; begin < rows.size(); begin += static_cast<size_t>(chunk)) {
    const auto n = std::min(chunk, static_cast<int64_t>(rows.size() - begin));
    const Tensor index{m.ws.max.data, DType::kI32, 1, n, n};
    copy_from_host(stream_, rows.data() + begin, index);
    gather_rows(stream_, all, index, m.ws.head_rows.row_range(0, n));
    const std::vector<float> part = head_logits(p, m.parameters, m.ws.head_rows.row_range(0, n));
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

void Decoder::zero_gradients() {
  const PhaseScope phase(stream_, Phase::kOptimizer);
  for (int g = 0; g < kReplicaGroups; ++g) {
    fill_zero(stream_, memory_->parameters.flat_grad(static_cast<ReplicaGroup>(g)));
  }
}

double Decoder::take_loss_sum() {
  double value = 0;
  copy_to_host(stream_, memory_->loss_sum, &value);
  fill_zero(stream_, memory_->loss_sum);
  return value;
}

Tensor Decoder::scalar() const {
  return memory_->scalar;
}

std::vector<float> Decoder::aux_losses() {
  if (dispatcher_ == nullptr) return {};
  std::vector<float> out(static_cast<size_t>(model_.num_hidden_layers));
  copy_to_host(stream_, memory_->saved.aux_loss, out.data());
  return out;
}

std::vector<float> Decoder::expert_assignments() {
  if (dispatcher_ == nullptr) return {};
  const Tensor& stats = memory_->saved.stats;
  const auto experts = static_cast<size_t>(stats.cols);
  std::vector<float> all(static_cast<size_t>(stats.size()));
  copy_to_host(stream_, stats, all.data());
  std::vector<float> out;
  for (size_t i = 0; i < static_cast<size_t>(model_.num_hidden_layers); ++i) {
    out.insert(out.end(), all.begin() + static_cast<int64_t>(2 * i * experts),
               all.begin() + static_cast<int64_t>((2 * i + 1) * experts));
  }
  return out;
}

std::vector<int32_t> Decoder::topk_indices(int64_t layer) {
  return memory_->saved.layers[static_cast<size_t>(layer)].moe.topk_indices_host;
}

std::vector<float> Decoder::topk_weights(int64_t layer) {
  const Tensor t =
      memory_->saved.layers[static_cast<size_t>(layer)].moe.topk_weights.row_range(0, batch_.slice_real);
  std::vector<float> out(static_cast<size_t>(t.size()));
  copy_to_host(stream_, t, out.data());
  return out;
}

int Decoder::dispatch_rounds() const {
  int rounds = 0;
  for (const LayerSaved& l : memory_->saved.layers)
    for (const DispatchPlan& plan : l.moe.plans) rounds = std::max(rounds, plan.rounds);
  return rounds;
}

}  // namespace pesc
