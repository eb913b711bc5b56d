#include "model/activations.h"

#include <algorithm>
#include <cmath>

#include "model/batch.h"
#include "model/lora_linear.h"
#include "model/shared_ffn.h"
#include "ops/adapter.h"
#include "ops/attention.h"
#include "ops/gemm.h"
#include "ops/router.h"
#include "ops/swiglu.h"

namespace pesc {

int usual_dispatch_chunks(DeviceKind device, const PescConfig& pesc, const Mesh& mesh, int64_t max_tokens) {
  constexpr int64_t kWorthCutting = 4096;
  const bool exchanges = pesc.mode == TrainMode::kPesc && mesh.ep() > 1;
  return device == DeviceKind::kCuda && exchanges && max_tokens >= kWorthCutting * mesh.tp() ? 2 : 1;
}

Sizes::Sizes(const Capacity& c, const PescConfig& pesc, const Mesh& mesh, DType type) : compute(type) {
  slice = (c.max_tokens + mesh.tp() - 1) / mesh.tp();
  padded = slice * mesh.tp();
  if (pesc.mode != TrainMode::kPesc) return;
  const int64_t k = pesc.moe.num_experts_per_tok;
  const bool gathers = c.expert_exchange == ExpertExchange::kWeights && mesh.ep() > 1;
  if (gathers) weight_buffers = c.gathers_ahead ? 2 : 1;
  token_ranks = gathers ? 1 : mesh.ep();
  const int ep = token_ranks;
  chunk_slice = slice;
  if (ep == 1) {
    assignments = slice * k;
    return;
  }
  PESC_CHECK(1 <= c.dispatch_chunks && c.dispatch_chunks <= kMaxChunks, c.dispatch_chunks, " chunks");
  chunks = c.dispatch_chunks;
  chunk_slice = chunk_rows(slice, chunks).front().size();
  // Balanced, each rank receives what it sends: at most min(k, ep) rows a token. All tokens of the group is
  // the limit.
  const auto balanced = static_cast<double>(chunk_slice * std::min<int64_t>(k, ep));
  const int64_t limit = std::max<int64_t>(1, chunk_slice * ep);
  capacity = std::clamp<int64_t>(static_cast<int64_t>(std::ceil(balanced * c.buffer_factor)), 1, limit);
  assignments = capacity * std::min<int64_t>(k, pesc.moe.num_experts / ep);
  indices = TokenDispatcher::index_count(ep, k, chunk_slice, capacity);
}

const char* recompute_name(Recompute recompute) {
  return recompute == Recompute::kNone ? "NONE" : recompute == Recompute::kSelective ? "SELECTIVE" : "FULL";
}

namespace {

// Which tensors each layer has for itself; the others are the first layer's, which all layers share.
struct Own {
  bool routing = false, input = false, attention = false, adapters = false, rest = false;
  Own(Purpose purpose, Recompute recompute, TrainMode mode) {
    if (purpose == Purpose::kInference) return;
    const bool none = recompute == Recompute::kNone;
    routing = true;
    input = recompute != Recompute::kSelective || mode != TrainMode::kPesc;
    attention = adapters = none;
    rest = recompute != Recompute::kFull;
  }
};

}  // namespace

Saved allocate_saved(const ModelPart& part, Purpose purpose, Recompute recompute, Arena& arena) {
  const auto& [m, pesc, mesh, parameters, n] = part;
  Saved saved;
  const int64_t h = m.hidden_size;
  const Own own(purpose, recompute, pesc.mode);
  for (const LayerParameters& p : parameters.layers) {
    const bool first = saved.layers.empty();
    LayerSaved s = first ? LayerSaved{} : saved.layers.front();  // the same memory
    const auto take = [&](bool of_its_own, Tensor& t, int64_t rows, int64_t cols, DType type) {
      if (first || of_its_own) t = arena.allocate(rows, cols, type);
    };
    take(own.input, s.x, n.slice, h, n.compute);
    take(own.rest, s.rstd1, 1, n.slice, DType::kF32);
    take(own.rest, s.rstd2, 1, n.slice, DType::kF32);
    take(own.rest, s.qkv, n.padded, p.qkv.base.out, n.compute);
    const int64_t concat_o = concat_input_columns(p.o, mesh.tp());
    take(own.attention, s.attention, n.padded, p.o.base.in + concat_o, n.compute);
    take(own.attention, s.lse, m.num_attention_heads / mesh.tp(), n.padded, DType::kF32);
    take(own.rest, s.x2, n.slice, h, n.compute);
    take(own.rest, s.gate_up, n.padded, p.gate_up.base.out, n.compute);
    take(own.rest, s.a_qkv, n.padded, p.qkv.lora_columns(), n.compute);
    take(own.rest, s.a_gate_up, n.padded, p.gate_up.lora_columns(), n.compute);
    const bool apart = own.rest && !own.attention;  // kSelective: a_o outlives what it stands beside
    take(own.rest, s.a_o, n.slice, p.o.lora_columns() - (apart ? 0 : concat_o), n.compute);
    take(own.rest, s.a_down, n.slice, p.down.lora_columns(), n.compute);
    if (pesc.mode == TrainMode::kPesc) {
      const MoeConfig& moe = pesc.moe;
      take(own.rest, s.moe.f, n.slice, h, n.compute);
      if (apart && moe.adapter_dropout > 0) {  // f outlives its masking
        take(false, s.moe.dropout_out, n.slice, h, n.compute);
      } else {
        s.moe.dropout_out = s.moe.f;
      }
      take(own.routing, s.moe.probs, n.slice, moe.num_experts, DType::kF32);
      take(own.routing, s.moe.topk_indices, n.slice, moe.num_experts_per_tok, DType::kI32);
      take(own.routing, s.moe.topk_weights, n.slice, moe.num_experts_per_tok, DType::kF32);
      take(own.routing, s.moe.indices, n.chunks, n.indices, DType::kI32);
      take(own.adapters, s.moe.adapter_pre_act, n.chunks * n.assignments, moe.adapter_dim, n.compute);
      take(own.adapters, s.moe.recv_tokens, n.chunks * n.capacity, h, n.compute);
      take(own.adapters, s.moe.recv_topk_weights, n.chunks * n.capacity, moe.num_experts_per_tok,
           DType::kF32);
    }
    saved.layers.push_back(std::move(s));
  }
  // The last layer's output is its input's successor: where inputs share one memory, so does it.
  const bool chained = purpose == Purpose::kTraining && !own.input;
  saved.x_final = chained ? saved.layers.front().x : arena.allocate(n.slice, h, n.compute);
  saved.rstd_final = arena.allocate(1, n.slice);
  const int64_t experts = pesc.mode == TrainMode::kPesc ? pesc.moe.num_experts : 0;
  saved.stats = arena.allocate(2 * m.num_hidden_layers, experts);
  saved.aux_loss_grad = arena.allocate(m.num_hidden_layers, experts);
  saved.aux_loss = arena.allocate(1, m.num_hidden_layers);
  return saved;
}

namespace {

WeightGatherer::Buffers allocate_gathered(const ModelPart& part, Arena& arena) {
  const int64_t h = part.model.hidden_size;
  const MoeConfig& moe = part.pesc.moe;
  WeightGatherer::Buffers buffers;
  for (int i = 0; i < part.sizes.weight_buffers; ++i) {
    buffers.weights.push_back({arena.allocate(moe.num_experts * moe.adapter_dim, h, part.sizes.compute),
                               arena.allocate(moe.num_experts * h, moe.adapter_dim, part.sizes.compute)});
  }
  const MoeParameters& own = part.parameters.layers.front().moe;
  if (own.ddown.rows == 0) return buffers;  // for inference
  buffers.grads = {arena.allocate(moe.num_experts * moe.adapter_dim, h),
                   arena.allocate(moe.num_experts * h, moe.adapter_dim)};
  buffers.own_grad = arena.allocate(1, own.ddown.size());
  return buffers;
}

}  // namespace

Workspace allocate_workspace(const ModelPart& part, const Capacity& c, Arena& arena) {
  const auto& [m, pesc, mesh, parameters, n] = part;
  Workspace w;
  const int64_t h = m.hidden_size;
  const LayerParameters& p = parameters.layers.front();
  const int64_t a_columns = std::max(p.qkv.concat_columns(), p.gate_up.concat_columns());
  for (Tensor* t : {&w.h, &w.dslice}) *t = arena.allocate(n.slice, h + a_columns, n.compute);
  for (Tensor* t : {&w.adapter_dinput, &w.dx}) *t = arena.allocate(n.slice, h, n.compute);
  const bool lora_on_norms = p.qkv.lora_columns() + p.gate_up.lora_columns() > 0;
  w.dropout_out = arena.allocate(lora_on_norms && pesc.lora.lora_dropout > 0 ? n.slice : 0, h, n.compute);
  if (mesh.tp() == 1) {
    // Nothing is gathered or scattered: both are views that nobody writes, but for the gradient of the last
    // norm's output, which stands where it would be scattered to.
    w.gathered = w.h;
    w.gathered_grad = w.dslice;
  } else {
    w.gathered = arena.allocate(n.padded, h + a_columns, n.compute);
    w.gathered_grad = arena.allocate(n.padded, h, n.compute);
  }
  const int64_t down = p.down.base.in + p.down.concat_columns();
  w.ffn_grad = arena.allocate(n.padded, std::max(down, p.qkv.base.out), n.compute);
  w.ffn_act = arena.allocate(n.padded, std::max(down, p.o.base.in + p.o.concat_columns()), n.compute);
  if (m.norms_qk()) {
    w.qk = arena.allocate(n.padded, p.qkv.base.out, n.compute);
    w.rstd_qk = arena.allocate(n.padded, (p.qkv.base.out + p.o.base.in) / (2 * m.head_dim));
  }
  const int64_t lora =
      std::max({p.qkv.lora_columns(), p.gate_up.lora_columns(), p.o.lora_columns(), p.down.lora_columns()});
  w.lora_slice = arena.allocate(n.slice, lora, n.compute);
  w.lora_full = arena.allocate(n.padded, lora, n.compute);
  if (pesc.mode == TrainMode::kPesc) {
    const int64_t k = pesc.moe.num_experts_per_tok;
    w.dtopk_weights = arena.allocate(n.slice, k);
    w.dlogits = arena.allocate(n.slice, pesc.moe.num_experts);
    if (n.token_ranks > 1) {
      for (Tensor* t : {&w.recv_tokens, &w.recv_grad, &w.adapter_out})
        *t = arena.allocate(n.chunks * n.capacity, h, n.compute);
      w.recv_topk_weights = arena.allocate(n.chunks * n.capacity, k);
      w.recv_dtopk_weights = arena.allocate(n.chunks * n.capacity, k);
      w.adapter_pre_act = arena.allocate(n.chunks * n.assignments, pesc.moe.adapter_dim, n.compute);
    }
    if (n.weight_buffers > 0) w.adapters = allocate_gathered(part, arena);
  }
  const int64_t chunk = std::min(c.head_chunk, std::max<int64_t>(n.padded, 1));
  w.head_rows = arena.allocate(chunk, h, n.compute);
  w.head_drows = arena.allocate(chunk, h, n.compute);
  w.logits = arena.allocate(chunk, split_range(m.vocab_size, mesh.tp(), 0).size(), n.compute);
  w.max = arena.allocate(1, chunk);
  w.sums = arena.allocate(2, chunk);
  w.loss = arena.allocate(1, chunk);
  return w;
}

int64_t dispatch_scratch_bytes(const ModelConfig& m, const PescConfig& pesc, const Sizes& n) {
  if (pesc.mode != TrainMode::kPesc) return 0;
  return TokenDispatcher::scratch_bytes(n.token_ranks, pesc.moe.num_experts_per_tok, n.chunk_slice,
                                        m.hidden_size, n.compute);
}

namespace {

// What GEMMs that add to their output take of the scratch while their kernels are timed: the
// largest output (ops/gemm.h). By what else is in the scratch at that time.
struct GemmTrials {
  int64_t alone = 0;     // nothing: LoRA's and the dense weights' GEMMs
  int64_t lora_a = 0;    // the dropped input of a LoRA branch: the gradient of A
  int64_t adapters = 0;  // the adapters' own scratch

  // `rows`: of the adapters' input.
  GemmTrials(const ModelParameters& p, const PescConfig& pesc, const Sizes& n, int64_t rows,
             const Device& device) {
    if (device.kernel_choice != KernelChoice::kAutotuned || n.compute != DType::kBF16) return;
    const LayerParameters& layer = p.layers.front();
    const auto output = [&](int64_t& most, int64_t out_rows, int64_t ld, DType type) {
      most = std::max(most, gemm_trial_bytes(device, out_rows, ld, type));
    };
    const auto gradient = [&](int64_t& most, const Tensor& t) { output(most, t.rows, t.cols, DType::kF32); };
    gradient(alone, p.dhead);
    for (const ColumnLinears* w : {&layer.qkv, &layer.gate_up}) {
      for (const ColumnLinears::Part& part : w->parts) {
        gradient(alone, part.dweight);
        gradient(alone, part.dlora_b);
      }
      gradient(lora_a, w->dlora_a);
      if (w->lora_columns() > w->concat_columns()) output(alone, n.padded, w->base.out, n.compute);
    }
    for (const RowLinear* w : {&layer.o, &layer.down}) {
      gradient(alone, w->dweight);
      gradient(alone, w->dlora_b);
      gradient(lora_a, w->dlora_a);
      if (w->lora_columns() == 0) continue;
      if (w->concat_columns() == 0) output(alone, n.padded, w->base.out, n.compute);
      output(alone, n.padded, w->base.in + w->concat_columns(), n.compute);  // the input's gradient
    }
    if (pesc.mode != TrainMode::kPesc) return;
    const int64_t ranks =
        n.weight_buffers > 0 ? pesc.moe.num_experts * pesc.moe.adapter_dim / layer.moe.down.rows : 1;
    for (const Tensor& t : {layer.moe.ddown, layer.moe.dup})
      output(adapters, ranks * t.rows, t.cols, DType::kF32);
    output(adapters, rows, p.layers.front().qkv.base.in, n.compute);
  }
};

}  // namespace

int64_t scratch_bytes(const ModelPart& part, const Capacity& c, const Device& device) {
  const auto& [m, pesc, mesh, parameters, n] = part;
  const int tp = mesh.tp();
  const int64_t rows = n.token_ranks == 1 ? n.slice : n.capacity;
  const GemmTrials trials(parameters, pesc, n, rows, device);
  const AttentionShape shape{m.num_attention_heads / tp, std::max<int64_t>(m.num_key_value_heads / tp, 1),
                             m.head_dim, 1.0F};
  int64_t bytes = attention_scratch_bytes(device, shape, n.padded, c.max_sequence, n.compute);
  int64_t frozen = 0;      // of the GEMMs with frozen weights
  int64_t grad_codes = 0;  // codes of the gradient of gate and up
  // Codes of a norm's output, which lie below all that its layer's forward takes of the scratch.
  int64_t norm_codes = 0;
  // Layers of a quantised folder may have different formats.
  for (const LayerParameters& p : parameters.layers) {
    for (const FrozenLinear* w : {&p.qkv.base, &p.o.base, &p.gate_up.base, &p.down.base})
      frozen = std::max(frozen, linear_scratch_bytes(device, *w, n.padded));
    Arena gradient = Arena::planning("codes of the gradient of gate and up");
    (void)p.gate_up.base.output_grad_codes(gradient, n.padded);
    grad_codes = std::max(grad_codes, gradient.peak());
    if (tp > 1) continue;
    for (const FrozenLinear* w : {&p.qkv.base, &p.gate_up.base}) {
      Arena input = Arena::planning("codes of a norm's output");
      (void)w->input_codes(input, n.slice);
      norm_codes = std::max(norm_codes, input.peak());
    }
  }
  bytes = std::max({bytes, frozen + trials.alone, trials.lora_a});
  bytes = std::max(
      bytes, lora_scratch_bytes(device, n.padded, shape.q_heads * m.head_dim, n.compute) + trials.lora_a);
  const int64_t swiglu = swiglu_scratch_bytes(device, n.padded, m.intermediate_size / tp, n.compute);
  bytes = std::max(bytes, std::max(grad_codes + swiglu, frozen) +
                              ffn_blocks_scratch_bytes(device, pesc, n.padded) + trials.lora_a);
  if (pesc.mode == TrainMode::kPesc) {
    const MoeConfig& moe = pesc.moe;
    bytes = std::max(bytes, router_scratch_bytes(device, n.slice, moe.num_experts, m.hidden_size, n.compute));
    bytes = std::max(bytes, adapter_scratch_bytes(device, rows, moe.num_experts_per_tok, m.hidden_size,
                                                  moe.adapter_dim, n.compute) +
                                trials.adapters);
  }
  return bytes + norm_codes + 64 * Arena::kAlignment;
}

}  // namespace pesc
