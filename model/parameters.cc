#include "model/parameters.h"

#include <algorithm>
#include <array>
#include <vector>

#include "model/hf_names.h"
#include "ops/core/check.h"

namespace pesc {
namespace {

// What the optimizer owns and what the model computes with: one tensor, or an F32 one and its rounded copy.
struct Held {
  Tensor value, used;
  [[nodiscard]] Held rows(int64_t begin, int64_t end) const {
    return {value.row_range(begin, end), used.row_range(begin, end)};
  }
};

// A fused local buffer out of which consecutive parameters take their rows.
struct Stack {
  Held buffer;
  int64_t next = 0;
  Held take(int64_t rows) {
    next += rows;
    return buffer.rows(next - rows, next);
  }
};

}  // namespace

// Walks the layers twice: first to list the parameters, giving each its value; then to hand out gradients,
// flat per replica group in list order, so that what is stacked in values is stacked in gradients too.
class ParameterBuilder {
 public:
  ParameterBuilder(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                   const Precision& precision, const ModelParameters::Arenas& arenas, ModelParameters& out)
      : model_(model),
        pesc_(pesc),
        mesh_(mesh),
        precision_(precision),
        arenas_(arenas),
        out_(out),
        full_(pesc.mode == TrainMode::kFull) {
    const int tp = mesh.tp();
    heads_ = model.heads / tp;
    kv_parts_ = static_cast<int>(std::min<int64_t>(model.kv_heads, tp));
    kv_heads_ = model.kv_heads / kv_parts_;
    kv_index_ = mesh.tp_rank() * kv_parts_ / tp;
  }

  void build() {
    out_.vocab = split_range(model_.vocab, mesh_.tp(), mesh_.tp_rank());
    out_.embedding = vocab_table(hf::kEmbedding);
    out_.head = model_.tied_embeddings ? out_.embedding : vocab_table(hf::kHead);
    out_.final_norm = norm(hf::kFinalNorm);
    out_.layers.resize(static_cast<size_t>(model_.layers));
    for (int64_t i = 0; i < model_.layers; ++i) {
      out_.first_of_layer_.push_back(out_.all_.size());
      build_layer(i, out_.layers[static_cast<size_t>(i)]);
    }
  }

 private:
  enum class Kind { kFrozen, kTrained };
  [[nodiscard]] Kind dense_kind() const { return full_ ? Kind::kTrained : Kind::kFrozen; }

  // A matrix that the products read.
  Held matrix(int64_t rows, int64_t cols, Kind kind) {
    if (kind == Kind::kFrozen || precision_.compute == DType::kF32) {
      const Tensor t = arenas_.weights.allocate(rows, cols, precision_.compute);
      return {t, t};
    }
    const Tensor value = arenas_.weights.allocate(rows, cols);
    return {value, arenas_.copies.allocate(rows, cols, precision_.compute)};
  }
  // The weight of a linear with so many columns of LoRA's B: frozen, or trained in all-parameters mode.
  Held base(int64_t out, int64_t in, int64_t lora_columns, FrozenLinear& base) {
    if (full_) {
      const Held held = matrix(out, in, Kind::kTrained);
      base = FrozenLinear::of(held.used);
      return held;
    }
    base = FrozenLinear::allocate(arenas_.weights, precision_.frozen, out, in, lora_columns);
    return {base.weight, base.weight};
  }
  // LoRA's B: its copy stands in `place` where that is there.
  Held lora_b(int64_t rows, const Tensor& place) {
    if (place.cols == 0) return matrix(rows, pesc_.lora.rank, Kind::kTrained);
    return {arenas_.weights.allocate(rows, pesc_.lora.rank), place};
  }
  // A norm, a bias or a router: F32 whatever the compute type.
  Held exact(int64_t rows, int64_t cols) {
    const Tensor t = arenas_.weights.allocate(rows, cols);
    return {t, t};
  }

  // A dense tensor: trained only in all-parameters mode.
  Tensor dense(ShardSpec spec, ReplicaGroup group, const Held& held, Init init = Init::kNormal) {
    add(std::move(spec), group, dense_kind(), init, held);
    out_.all_.back().dense = true;
    return held.used;
  }
  Tensor add(ShardSpec spec, ReplicaGroup group, Kind kind, Init init, const Held& held) {
    PESC_CHECK(held.value.rows == spec.rows && held.value.cols == spec.cols, spec.name);
    Parameter p;
    p.spec = std::move(spec);
    p.group = group;
    p.trained = kind == Kind::kTrained;
    p.init = init;
    p.value = held.value;
    if (held.used.dtype != held.value.dtype) p.copy = held.used;
    out_.all_.push_back(std::move(p));
    return held.used;
  }
  static ShardSpec rows_of(std::string name, int64_t rows, int64_t cols, int64_t begin, int64_t count) {
    return {std::move(name), rows, cols, begin, count, 0, cols, 0, 1};
  }
  static ShardSpec cols_of(std::string name, int64_t rows, int64_t cols, int64_t begin, int64_t count) {
    return {std::move(name), rows, cols, 0, rows, begin, count, 0, 1};
  }
  static ShardSpec whole(std::string name, int64_t rows, int64_t cols) {
    return {std::move(name), rows, cols, 0, rows, 0, cols, 0, 1};
  }

  Tensor vocab_table(const std::string& name) {
    return dense(rows_of(name, model_.vocab, model_.hidden, out_.vocab.begin, out_.vocab.size()),
                 ReplicaGroup::kDp, matrix(out_.vocab.size(), model_.hidden, dense_kind()));
  }
  Tensor norm(const std::string& name) {
    return dense(whole(name, 1, model_.hidden), ReplicaGroup::kWorld, exact(1, model_.hidden), Init::kOnes);
  }

  struct Cut {  // how a column-parallel linear is cut over tp
    int64_t global = 0, begin = 0, count = 0;
    ReplicaGroup group = ReplicaGroup::kDp;
  };
  Cut column_cut(Linear linear) const {
    const int64_t d = model_.head_dim;
    if (linear == Linear::kQ)
      return {model_.heads * d, mesh_.tp_rank() * heads_ * d, heads_ * d, ReplicaGroup::kDp};
    if (linear == Linear::kK || linear == Linear::kV) {
      return {model_.kv_heads * d, kv_index_ * kv_heads_ * d, kv_heads_ * d, ReplicaGroup::kDpKv};
    }
    const int64_t f = model_.ffn / mesh_.tp();
    return {model_.ffn, mesh_.tp_rank() * f, f, ReplicaGroup::kDp};
  }

  void build_columns(int64_t layer, std::span<const Linear> linears, bool bias, ColumnLinears& out) {
    int64_t rows = 0;
    int64_t with_lora = 0;
    for (const Linear l : linears) {
      rows += column_cut(l).count;
      with_lora += lora(l) ? 1 : 0;
    }
    const int64_t h = model_.hidden;
    const int64_t r = pesc_.lora.rank;
    Stack weight{base(rows, h, with_lora * r, out.base)};
    Stack biases{bias ? exact(rows, 1) : Held{}};
    for (const Linear l : linears) {
      const Cut cut = column_cut(l);
      ColumnLinears::Part part;
      part.linear = l;
      part.begin = weight.next;
      part.end = weight.next + cut.count;
      dense(rows_of(hf::weight(layer, l), cut.global, h, cut.begin, cut.count), cut.group,
            weight.take(cut.count));
      if (!full_) out_.all_.back().held = out.base.rows(part.begin, part.end);
      if (bias) {
        const Tensor mine = biases.take(cut.count).value.reshaped(1, cut.count);
        dense(cols_of(hf::bias(layer, l), 1, cut.global, cut.begin, cut.count), cut.group, {mine, mine},
              Init::kZero);
      }
      out.parts.push_back(part);
    }
    if (bias) out.bias = biases.buffer.value.reshaped(1, rows);
    if (with_lora == 0) return;
    Stack a{matrix(with_lora * r, h, Kind::kTrained)};
    out.lora_a = a.buffer.used;
    for (ColumnLinears::Part& part : out.parts) {
      if (!lora(part.linear)) continue;
      part.lora_begin = a.next;
      add(whole(hf::lora_a(layer, part.linear), r, h), ReplicaGroup::kWorld, Kind::kTrained,
          Init::kKaimingUniform, a.take(r));
    }
    for (ColumnLinears::Part& part : out.parts) {
      if (!lora(part.linear)) continue;
      const Cut cut = column_cut(part.linear);
      const Tensor place = out.base.lora_b({part.begin, part.end}, {part.lora_begin, part.lora_begin + r});
      part.lora_b = add(rows_of(hf::lora_b(layer, part.linear), cut.global, r, cut.begin, cut.count),
                        cut.group, Kind::kTrained, Init::kZero, lora_b(cut.count, place));
    }
  }

  void build_row(int64_t layer, Linear linear, int64_t global_in, RowLinear& out) {
    const int64_t in = global_in / mesh_.tp();
    const int64_t r = pesc_.lora.rank;
    out.linear = linear;
    out.column0 = in * mesh_.tp_rank();
    dense(cols_of(hf::weight(layer, linear), model_.hidden, global_in, out.column0, in), ReplicaGroup::kDp,
          base(model_.hidden, in, lora(linear) ? r : 0, out.base));
    if (!full_) out_.all_.back().held = out.base;
    if (!lora(linear)) return;
    out.lora_a = add(cols_of(hf::lora_a(layer, linear), r, global_in, out.column0, in), ReplicaGroup::kDp,
                     Kind::kTrained, Init::kKaimingUniform, matrix(r, in, Kind::kTrained));
    const Tensor place = out.base.lora_b({0, model_.hidden}, {0, r});
    out.lora_b = add(whole(hf::lora_b(layer, linear), model_.hidden, r), ReplicaGroup::kWorld, Kind::kTrained,
                     Init::kZero, lora_b(model_.hidden, place));
  }

  void build_moe(int64_t layer, MoeParameters& out) {
    const MoeConfig& moe = pesc_.moe;
    const int64_t h = model_.hidden;
    const int64_t d = moe.adapter_dim;
    const Range mine = mesh_.experts(moe.experts);
    out.router = add(whole(hf::router(layer), moe.experts, h), ReplicaGroup::kWorld, Kind::kTrained,
                     Init::kKaimingUniform, exact(moe.experts, h));
    Stack down{matrix(mine.size() * d, h, Kind::kTrained)};
    Stack up{matrix(mine.size() * h, d, Kind::kTrained)};
    out.down = down.buffer.used;
    out.up = up.buffer.used;
    for (int64_t e = mine.begin; e < mine.end; ++e) {
      add(whole(hf::adapter_down(layer, e), d, h), ReplicaGroup::kExpert, Kind::kTrained,
          Init::kKaimingUniform, down.take(d));
    }
    for (int64_t e = mine.begin; e < mine.end; ++e) {
      add(whole(hf::adapter_up(layer, e), h, d), ReplicaGroup::kExpert, Kind::kTrained, Init::kZero,
          up.take(h));
    }
  }

  void build_layer(int64_t i, LayerParameters& out) {
    static constexpr std::array kQkv{Linear::kQ, Linear::kK, Linear::kV};
    static constexpr std::array kGateUp{Linear::kGate, Linear::kUp};
    out.input_norm = norm(hf::input_norm(i));
    out.post_norm = norm(hf::post_norm(i));
    build_columns(i, kQkv, model_.qkv_bias, out.qkv);
    build_row(i, Linear::kO, model_.heads * model_.head_dim, out.o);
    build_columns(i, kGateUp, false, out.gate_up);
    build_row(i, Linear::kDown, model_.ffn, out.down);
    if (pesc_.mode == TrainMode::kPesc) build_moe(i, out.moe);
  }

  [[nodiscard]] bool lora(Linear linear) const { return !full_ && pesc_.lora.on(linear); }

  const ModelConfig& model_;
  const PescConfig& pesc_;
  const Mesh& mesh_;
  Precision precision_;
  const ModelParameters::Arenas& arenas_;
  ModelParameters& out_;
  bool full_;
  int64_t heads_ = 0, kv_heads_ = 0;
  int kv_parts_ = 1, kv_index_ = 0;
};

namespace {

// The stacked gradient of consecutive parameters [first, first + count).
Tensor stacked_grad(const std::vector<Parameter>& all, size_t first, size_t count) {
  Tensor t = all[first].grad;
  t.rows *= static_cast<int64_t>(count);
  return t;
}

// Finds parameters in the order in which the builder listed them.
class GradCursor {
 public:
  explicit GradCursor(const std::vector<Parameter>& all) : all_(all) {}
  Tensor next(bool wanted = true) { return wanted ? all_[at_++].grad : Tensor{}; }
  Tensor next_stack(size_t count) {
    if (count == 0) return {};
    Tensor t = stacked_grad(all_, at_, count);
    at_ += count;
    return t;
  }
  [[nodiscard]] bool done() const { return at_ == all_.size(); }

 private:
  const std::vector<Parameter>& all_;
  size_t at_ = 0;
};

void columns_grads(GradCursor& cursor, ColumnLinears& linears, int64_t rank) {
  for (auto& part : linears.parts) {
    part.dweight = cursor.next();
    part.dbias = cursor.next(linears.bias.cols > 0);
  }
  linears.dlora_a = cursor.next_stack(rank > 0 ? static_cast<size_t>(linears.lora_columns() / rank) : 0);
  for (auto& part : linears.parts) part.dlora_b = cursor.next(part.lora_begin >= 0);
}

void row_grads(GradCursor& cursor, RowLinear& linear) {
  linear.dweight = cursor.next();
  linear.dlora_a = cursor.next(linear.lora_a.rows > 0);
  linear.dlora_b = cursor.next(linear.lora_b.rows > 0);
}

}  // namespace

ModelParameters::ModelParameters(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                                 const Precision& precision, const Arenas& arenas) {
  ParameterBuilder(model, pesc, mesh, precision, arenas, *this).build();

  Arena* optimizer = arenas.optimizer;
  if (optimizer == nullptr) return;
  std::array<int64_t, kReplicaGroups> elements{};
  for (const Parameter& p : all_) {
    if (p.trained) elements[static_cast<size_t>(p.group)] += p.spec.size();
  }
  std::array<Tensor, kReplicaGroups> avg;
  std::array<Tensor, kReplicaGroups> avg_sq;
  for (size_t g = 0; g < kReplicaGroups; ++g) {
    flat_grad_[g] = optimizer->allocate(1, elements[g]);
    avg[g] = optimizer->allocate(1, elements[g]);
    avg_sq[g] = optimizer->allocate(1, elements[g]);
  }
  std::array<int64_t, kReplicaGroups> offset{};
  const auto layer_begins = [&] {
    for (size_t g = 0; g < kReplicaGroups; ++g) layer_begin_[g].push_back(offset[g]);
  };
  for (size_t i = 0; i < all_.size(); ++i) {
    Parameter& p = all_[i];
    if (layer_begin_[0].size() < layers.size() && i == first_of_layer_[layer_begin_[0].size()])
      layer_begins();
    if (!p.trained) continue;
    const auto g = static_cast<size_t>(p.group);
    const int64_t end = offset[g] + p.spec.size();
    p.grad = flat_grad_[g].col_range(offset[g], end).reshaped(p.spec.rows, p.spec.cols);
    p.exp_avg = avg[g].col_range(offset[g], end).reshaped(p.spec.rows, p.spec.cols);
    p.exp_avg_sq = avg_sq[g].col_range(offset[g], end).reshaped(p.spec.rows, p.spec.cols);
    offset[g] = end;
  }
  layer_begins();  // the end of the last

  GradCursor cursor(all_);
  dembedding = cursor.next();
  dhead = model.tied_embeddings ? dembedding : cursor.next();
  dfinal_norm = cursor.next();
  for (LayerParameters& layer : layers) {
    layer.dinput_norm = cursor.next();
    layer.dpost_norm = cursor.next();
    columns_grads(cursor, layer.qkv, pesc.lora.rank);
    row_grads(cursor, layer.o);
    columns_grads(cursor, layer.gate_up, pesc.lora.rank);
    row_grads(cursor, layer.down);
    if (pesc.mode == TrainMode::kPesc) {
      const auto experts = static_cast<size_t>(mesh.experts(pesc.moe.experts).size());
      layer.moe.drouter = cursor.next();
      layer.moe.ddown = cursor.next_stack(experts);
      layer.moe.dup = cursor.next_stack(experts);
    }
  }
  PESC_CHECK(cursor.done());
}

const Parameter& ModelParameters::find(const std::string& name) const {
  for (const Parameter& p : all_) {
    if (p.spec.name == name) return p;
  }
  throw InternalError(str_cat("no parameter '", name, "' on this rank"));
}

Tensor ModelParameters::layer_grads(ReplicaGroup group, int64_t begin, int64_t end) const {
  const std::vector<int64_t>& at = layer_begin_[static_cast<size_t>(group)];
  return flat_grad(group).col_range(at.at(static_cast<size_t>(begin)), at.at(static_cast<size_t>(end)));
}

Tensor ModelParameters::other_grads(ReplicaGroup group) const {
  return flat_grad(group).col_range(0, layer_begin_[static_cast<size_t>(group)].front());
}

int64_t ModelParameters::trained_elements() const {
  int64_t n = 0;
  for (const Parameter& p : all_) n += p.trained ? p.spec.size() : 0;
  return n;
}

int64_t ModelParameters::frozen_bytes() const {
  int64_t n = 0;
  for (const Parameter& p : all_) n += p.trained ? 0 : p.value.bytes() + p.held.scales.bytes();
  return n;
}

int64_t ModelParameters::expert_bytes() const {
  int64_t n = 0;
  for (const Parameter& p : all_) n += p.trained && p.group == ReplicaGroup::kExpert ? p.value.bytes() : 0;
  return n;
}

}  // namespace pesc
