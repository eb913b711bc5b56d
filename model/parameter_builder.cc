#include "model/parameter_builder.h"

#include <algorithm>
#include <array>
#include <utility>

#include "model/hf_names.h"
#include "ops/core/check.h"
#include "ops/fp8.h"

namespace pesc {
namespace {

ShardSpec rows_of(std::string name, int64_t rows, int64_t cols, int64_t begin, int64_t count) {
  return {std::move(name), rows, cols, begin, count, 0, cols, 0, 1};
}
ShardSpec cols_of(std::string name, int64_t rows, int64_t cols, int64_t begin, int64_t count) {
  return {std::move(name), rows, cols, 0, rows, begin, count, 0, 1};
}
ShardSpec whole(std::string name, int64_t rows, int64_t cols) {
  return {std::move(name), rows, cols, 0, rows, 0, cols, 0, 1};
}

}  // namespace

ParameterBuilder::ParameterBuilder(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                                   const Precision& precision, const ModelParameters::Arenas& arenas,
                                   ModelParameters& out)
    : model_(model),
      pesc_(pesc),
      mesh_(mesh),
      precision_(precision),
      arenas_(arenas),
      out_(out),
      full_(pesc.mode == TrainMode::kFull) {
  const int tp = mesh.tp();
  heads_ = model.num_attention_heads / tp;
  kv_parts_ = static_cast<int>(std::min<int64_t>(model.num_key_value_heads, tp));
  kv_heads_ = model.num_key_value_heads / kv_parts_;
  kv_index_ = mesh.tp_rank() * kv_parts_ / tp;
}

void ParameterBuilder::build() {
  out_.vocab = split_range(model_.vocab_size, mesh_.tp(), mesh_.tp_rank());
  out_.embedding = vocab_table(hf::kEmbedding, out_.dembedding);
  if (model_.tie_word_embeddings) {
    out_.head = out_.embedding;
    slots_.add(out_.all_.size() - 1, out_.dhead);
  } else {
    out_.head = vocab_table(hf::kHead, out_.dhead);
  }
  out_.final_norm = norm(hf::kFinalNorm, model_.hidden_size, out_.dfinal_norm);
  out_.layers.resize(static_cast<size_t>(model_.num_hidden_layers));
  for (int64_t i = 0; i < model_.num_hidden_layers; ++i) {
    out_.first_of_layer_.push_back(out_.all_.size());
    build_layer(i, out_.layers[static_cast<size_t>(i)]);
  }
}

void ParameterBuilder::build_gradients(Arena& optimizer) {
  std::array<int64_t, kReplicaGroups> elements{};
  for (const Parameter& p : out_.all_) {
    if (p.trainable) elements[static_cast<size_t>(p.group)] += p.spec.size();
  }
  std::array<Tensor, kReplicaGroups> avg;
  std::array<Tensor, kReplicaGroups> avg_sq;
  for (size_t g = 0; g < kReplicaGroups; ++g) {
    out_.flat_grad_[g] = optimizer.allocate(1, elements[g]);
    avg[g] = optimizer.allocate(1, elements[g]);
    avg_sq[g] = optimizer.allocate(1, elements[g]);
  }
  std::array<int64_t, kReplicaGroups> offset{};
  const auto layer_begins = [&] {
    for (size_t g = 0; g < kReplicaGroups; ++g) out_.layer_begin_[g].push_back(offset[g]);
  };
  for (size_t i = 0; i < out_.all_.size(); ++i) {
    Parameter& p = out_.all_[i];
    const size_t layer = out_.layer_begin_[0].size();
    if (layer < out_.layers.size() && i == out_.first_of_layer_[layer]) layer_begins();
    if (!p.trainable) continue;
    const auto g = static_cast<size_t>(p.group);
    const int64_t end = offset[g] + p.spec.size();
    p.grad = out_.flat_grad_[g].col_range(offset[g], end).reshaped(p.spec.rows, p.spec.cols);
    p.exp_avg = avg[g].col_range(offset[g], end).reshaped(p.spec.rows, p.spec.cols);
    p.exp_avg_sq = avg_sq[g].col_range(offset[g], end).reshaped(p.spec.rows, p.spec.cols);
    offset[g] = end;
  }
  layer_begins();  // the end of the last
  slots_.fill(out_.all_);
}

ParameterBuilder::Held ParameterBuilder::matrix(int64_t rows, int64_t cols, Kind kind) {
  if (kind == Kind::kFrozen || precision_.compute == DType::kF32) {
    const Tensor t = arenas_.weights.allocate(rows, cols, precision_.compute);
    return {t, t};
  }
  const Tensor value = arenas_.weights.allocate(rows, cols);
  return {value, arenas_.compute_weights.allocate(rows, cols, precision_.compute)};
}

FrozenType ParameterBuilder::held_as(int64_t layer, std::span<const Linear> linears) const {
  const bool plain = model_.quantized && !std::ranges::all_of(linears, [&](Linear linear) {
                       return model_.quantized->holds(layer, linear);
                     });
  if (plain) return {plain_format(precision_.compute), precision_.compute};
  FrozenType type = precision_.frozen;
  type.folder_scales = model_.quantized && type.format == FrozenFormat::kFP8;
  return type;
}

ParameterBuilder::Held ParameterBuilder::base(const FrozenType& type, int64_t out, int64_t in,
                                              int64_t lora_columns, FrozenLinear& base) {
  if (full_) {
    const Held held = matrix(out, in, Kind::kTrainable);
    base = FrozenLinear::of(held.used);
    return held;
  }
  base = FrozenLinear::allocate(arenas_.weights, type, out, in, lora_columns);
  if (is_quantized(base.type.format)) {
    const Tensor absent{nullptr, DType::kF32, out, in, in};
    return {absent, absent};
  }
  return {base.weight, base.weight};
}

ParameterBuilder::Held ParameterBuilder::lora_b(int64_t rows, const Tensor& place) {
  if (place.cols == 0) return matrix(rows, pesc_.lora.r, Kind::kTrainable);
  return {arenas_.weights.allocate(rows, pesc_.lora.r), place};
}

ParameterBuilder::Held ParameterBuilder::exact(int64_t rows, int64_t cols) {
  const Tensor t = arenas_.weights.allocate(rows, cols);
  return {t, t};
}

Tensor ParameterBuilder::add(ShardSpec spec, ReplicaGroup group, Kind kind, Init init, const Held& held,
                             Tensor& grad) {
  PESC_CHECK(held.value.rows == spec.rows && held.value.cols == spec.cols, spec.name);
  slots_.add(out_.all_.size(), grad);
  Parameter p;
  p.spec = std::move(spec);
  p.group = group;
  p.trainable = kind == Kind::kTrainable;
  p.init = init;
  p.master = held.value;
  if (held.used.dtype != held.value.dtype) p.compute_weight = held.used;
  out_.all_.push_back(std::move(p));
  return held.used;
}

Tensor ParameterBuilder::dense(ShardSpec spec, ReplicaGroup group, const Held& held, Tensor& grad,
                               Init init) {
  add(std::move(spec), group, dense_kind(), init, held, grad);
  out_.all_.back().dense = true;
  return held.used;
}

Tensor ParameterBuilder::vocab_table(const std::string& name, Tensor& grad) {
  return dense(rows_of(name, model_.vocab_size, model_.hidden_size, out_.vocab.begin, out_.vocab.size()),
               ReplicaGroup::kDp, matrix(out_.vocab.size(), model_.hidden_size, dense_kind()), grad);
}

// Every rank's gradient is a sum over its own tokens and heads. A KV head that stands on several tp ranks gets
// on each what comes from that rank's query heads alone: summed over the world they are whole.
Tensor ParameterBuilder::norm(const std::string& name, int64_t columns, Tensor& grad) {
  return dense(whole(name, 1, columns), ReplicaGroup::kWorld, exact(1, columns), grad, Init::kOnes);
}

ParameterBuilder::Cut ParameterBuilder::column_cut(Linear linear) const {
  const int64_t d = model_.head_dim;
  if (linear == Linear::kQ)
    return {model_.num_attention_heads * d, mesh_.tp_rank() * heads_ * d, heads_ * d, ReplicaGroup::kDp};
  if (linear == Linear::kK || linear == Linear::kV)
    return {model_.num_key_value_heads * d, kv_index_ * kv_heads_ * d, kv_heads_ * d, ReplicaGroup::kDpKv};
  const int64_t f = model_.intermediate_size / mesh_.tp();
  return {model_.intermediate_size, mesh_.tp_rank() * f, f, ReplicaGroup::kDp};
}

void ParameterBuilder::build_columns(int64_t layer, std::span<const Linear> linears, BiasTerm bias,
                                     ColumnLinears& out) {
  int64_t rows = 0;
  int64_t with_lora = 0;
  for (const Linear l : linears) {
    rows += column_cut(l).count;
    with_lora += lora(l) ? 1 : 0;
  }
  const int64_t h = model_.hidden_size;
  const bool biased = bias == BiasTerm::kPresent;
  Stack weight{base(held_as(layer, linears), rows, h, with_lora * pesc_.lora.r, out.base)};
  Stack biases{biased ? exact(rows, 1) : Held{}};
  out.parts.resize(linears.size());  // before slots point into it
  for (size_t i = 0; i < linears.size(); ++i) {
    const Cut cut = column_cut(linears[i]);
    ColumnLinears::Part& part = out.parts[i];
    part.linear = linears[i];
    part.begin = weight.next;
    part.end = weight.next + cut.count;
    dense(rows_of(hf::weight(layer, part.linear), cut.global, h, cut.begin, cut.count), cut.group,
          weight.take(cut.count), part.dweight);
    if (!full_) out_.all_.back().held = out.base.rows(part.begin, part.end);
    if (!biased) continue;
    const Tensor mine = biases.take(cut.count).value.reshaped(1, cut.count);
    dense(cols_of(hf::bias(layer, part.linear), 1, cut.global, cut.begin, cut.count), cut.group, {mine, mine},
          part.dbias, Init::kZero);
  }
  if (biased) out.bias = biases.buffer.value.reshaped(1, rows);
  if (with_lora > 0) build_column_lora(layer, with_lora * pesc_.lora.r, out);
}

void ParameterBuilder::build_column_lora(int64_t layer, int64_t columns, ColumnLinears& out) {
  const int64_t r = pesc_.lora.r;
  Stack a{matrix(columns, model_.hidden_size, Kind::kTrainable)};
  out.lora_a = a.buffer.used;
  for (ColumnLinears::Part& part : out.parts) {
    if (!lora(part.linear)) continue;
    part.lora_begin = a.next;
    add(whole(hf::lora_a(layer, part.linear), r, model_.hidden_size), ReplicaGroup::kWorld, Kind::kTrainable,
        Init::kKaimingUniform, a.take(r), out.dlora_a);
  }
  for (ColumnLinears::Part& part : out.parts) {
    if (!lora(part.linear)) continue;
    const Cut cut = column_cut(part.linear);
    const Tensor place = out.base.lora_b({part.begin, part.end}, {part.lora_begin, part.lora_begin + r});
    part.lora_b = add(rows_of(hf::lora_b(layer, part.linear), cut.global, r, cut.begin, cut.count), cut.group,
                      Kind::kTrainable, Init::kZero, lora_b(cut.count, place), part.dlora_b);
  }
}

void ParameterBuilder::build_row(int64_t layer, Linear linear, int64_t global_in, RowLinear& out) {
  const int64_t in = global_in / mesh_.tp();
  const int64_t r = pesc_.lora.r;
  out.linear = linear;
  out.column0 = in * mesh_.tp_rank();
  dense(cols_of(hf::weight(layer, linear), model_.hidden_size, global_in, out.column0, in), ReplicaGroup::kDp,
        base(held_as(layer, {&linear, 1}), model_.hidden_size, in, lora(linear) ? r : 0, out.base),
        out.dweight);
  out.base.block_offset = out.column0 % kFp8Block;
  if (!full_) out_.all_.back().held = out.base;
  if (!lora(linear)) return;
  out.lora_a = add(cols_of(hf::lora_a(layer, linear), r, global_in, out.column0, in), ReplicaGroup::kDp,
                   Kind::kTrainable, Init::kKaimingUniform, matrix(r, in, Kind::kTrainable), out.dlora_a);
  out.lora_b = add(whole(hf::lora_b(layer, linear), model_.hidden_size, r), ReplicaGroup::kWorld,
                   Kind::kTrainable, Init::kZero,
                   lora_b(model_.hidden_size, out.base.lora_b({0, model_.hidden_size}, {0, r})), out.dlora_b);
}

void ParameterBuilder::build_moe(int64_t layer, MoeParameters& out) {
  const MoeConfig& moe = pesc_.moe;
  const int64_t h = model_.hidden_size;
  const int64_t d = moe.adapter_dim;
  const Range mine = mesh_.experts(moe.num_experts);
  out.router = add(whole(hf::router(layer), moe.num_experts, h), ReplicaGroup::kWorld, Kind::kTrainable,
                   Init::kKaimingUniform, exact(moe.num_experts, h), out.drouter);
  Stack down{matrix(mine.size() * d, h, Kind::kTrainable)};
  Stack up{matrix(mine.size() * h, d, Kind::kTrainable)};
  out.down = down.buffer.used;
  out.up = up.buffer.used;
  for (int64_t e = mine.begin; e < mine.end; ++e) {
    add(whole(hf::adapter_down(layer, e), d, h), ReplicaGroup::kExpert, Kind::kTrainable,
        Init::kKaimingUniform, down.take(d), out.ddown);
  }
  for (int64_t e = mine.begin; e < mine.end; ++e) {
    add(whole(hf::adapter_up(layer, e), h, d), ReplicaGroup::kExpert, Kind::kTrainable, Init::kZero,
        up.take(h), out.dup);
  }
}

void ParameterBuilder::build_layer(int64_t i, LayerParameters& out) {
  static constexpr std::array kQkv{Linear::kQ, Linear::kK, Linear::kV};
  static constexpr std::array kGateUp{Linear::kGate, Linear::kUp};
  out.input_norm = norm(hf::input_norm(i), model_.hidden_size, out.dinput_norm);
  out.post_norm = norm(hf::post_norm(i), model_.hidden_size, out.dpost_norm);
  if (model_.norms_qk()) {
    out.q_norm = norm(hf::q_norm(i), model_.head_dim, out.dq_norm);
    out.k_norm = norm(hf::k_norm(i), model_.head_dim, out.dk_norm);
  }
  build_columns(i, kQkv, model_.qkv_bias ? BiasTerm::kPresent : BiasTerm::kAbsent, out.qkv);
  build_row(i, Linear::kO, model_.num_attention_heads * model_.head_dim, out.o);
  build_columns(i, kGateUp, BiasTerm::kAbsent, out.gate_up);
  build_row(i, Linear::kDown, model_.intermediate_size, out.down);
  if (pesc_.mode == TrainMode::kPesc) build_moe(i, out.moe);
}

}  // namespace pesc
