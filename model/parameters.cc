#include "model/parameters.h"

#include <array>
#include <cmath>
#include <vector>

#include "model/hf_names.h"
#include "ops/core/check.h"
#include "ops/init.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

// FNV-1a: tells the random streams of tensors apart by name.
uint64_t hash_name(const std::string& name) {
  uint64_t hash = 14695981039346656037ULL;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  return hash;
}

// A fused local buffer out of which consecutive parameters take their rows.
struct Stack {
  Tensor buffer;
  int64_t next = 0;
  Tensor take(int64_t rows) {
    Tensor t = buffer.row_range(next, next + rows);
    next += rows;
    return t;
  }
};

}  // namespace

// Walks the layers twice: first to list the parameters, giving each its value; then to hand out gradients,
// flat per replica group in list order, so that what is stacked in values is stacked in gradients too.
class ParameterBuilder {
 public:
  ParameterBuilder(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh, Arena& weights,
                   ModelParameters& out)
      : model_(model),
        pesc_(pesc),
        mesh_(mesh),
        weights_(weights),
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
    for (int64_t i = 0; i < model_.layers; ++i) build_layer(i, out_.layers[static_cast<size_t>(i)]);
  }

 private:
  // A dense tensor: trained only in all-parameters mode.
  Tensor dense(ShardSpec spec, ReplicaGroup group, Tensor value, Init init = Init::kNormal) {
    add(std::move(spec), group, full_, init, value);
    out_.all_.back().dense = true;
    return value;
  }
  Tensor add(ShardSpec spec, ReplicaGroup group, bool trained, Init init, Tensor value) {
    PESC_CHECK(value.rows == spec.rows && value.cols == spec.cols, spec.name);
    Parameter p;
    p.spec = std::move(spec);
    p.group = group;
    p.trained = trained;
    p.init = init;
    p.value = value;
    out_.all_.push_back(std::move(p));
    return value;
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
                 ReplicaGroup::kDp, weights_.allocate(out_.vocab.size(), model_.hidden));
  }
  Tensor norm(const std::string& name) {
    return dense(whole(name, 1, model_.hidden), ReplicaGroup::kWorld, weights_.allocate(1, model_.hidden),
                 Init::kOnes);
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
    Stack weight{weights_.allocate(rows, h)};
    Stack biases{bias ? weights_.allocate(rows, 1) : Tensor{}};
    out.weight = weight.buffer;
    for (const Linear l : linears) {
      const Cut cut = column_cut(l);
      ColumnLinears::Part part;
      part.linear = l;
      part.begin = weight.next;
      part.end = weight.next + cut.count;
      dense(rows_of(hf::weight(layer, l), cut.global, h, cut.begin, cut.count), cut.group,
            weight.take(cut.count));
      if (bias) {
        dense(cols_of(hf::bias(layer, l), 1, cut.global, cut.begin, cut.count), cut.group,
              biases.take(cut.count).reshaped(1, cut.count), Init::kZero);
      }
      out.parts.push_back(part);
    }
    if (bias) out.bias = biases.buffer.reshaped(1, rows);
    if (with_lora == 0) return;
    Stack a{weights_.allocate(with_lora * r, h)};
    out.lora_a = a.buffer;
    for (ColumnLinears::Part& part : out.parts) {
      if (!lora(part.linear)) continue;
      part.lora_begin = a.next;
      add(whole(hf::lora_a(layer, part.linear), r, h), ReplicaGroup::kWorld, true, Init::kKaimingUniform,
          a.take(r));
    }
    for (ColumnLinears::Part& part : out.parts) {
      if (!lora(part.linear)) continue;
      const Cut cut = column_cut(part.linear);
      part.lora_b = add(rows_of(hf::lora_b(layer, part.linear), cut.global, r, cut.begin, cut.count),
                        cut.group, true, Init::kZero, weights_.allocate(cut.count, r));
    }
  }

  void build_row(int64_t layer, Linear linear, int64_t global_in, RowLinear& out) {
    const int64_t in = global_in / mesh_.tp();
    const int64_t r = pesc_.lora.rank;
    out.linear = linear;
    out.column0 = in * mesh_.tp_rank();
    out.weight = dense(cols_of(hf::weight(layer, linear), model_.hidden, global_in, out.column0, in),
                       ReplicaGroup::kDp, weights_.allocate(model_.hidden, in));
    if (!lora(linear)) return;
    out.lora_a = add(cols_of(hf::lora_a(layer, linear), r, global_in, out.column0, in), ReplicaGroup::kDp,
                     true, Init::kKaimingUniform, weights_.allocate(r, in));
    out.lora_b = add(whole(hf::lora_b(layer, linear), model_.hidden, r), ReplicaGroup::kWorld, true,
                     Init::kZero, weights_.allocate(model_.hidden, r));
  }

  void build_moe(int64_t layer, MoeParameters& out) {
    const MoeConfig& moe = pesc_.moe;
    const int64_t h = model_.hidden;
    const int64_t d = moe.adapter_dim;
    const Range mine = mesh_.experts(moe.experts);
    out.router = add(whole(hf::router(layer), moe.experts, h), ReplicaGroup::kWorld, true,
                     Init::kKaimingUniform, weights_.allocate(moe.experts, h));
    Stack down{weights_.allocate(mine.size() * d, h)};
    Stack up{weights_.allocate(mine.size() * h, d)};
    out.down = down.buffer;
    out.up = up.buffer;
    for (int64_t e = mine.begin; e < mine.end; ++e) {
      add(whole(hf::adapter_down(layer, e), d, h), ReplicaGroup::kExpert, true, Init::kKaimingUniform,
          down.take(d));
    }
    for (int64_t e = mine.begin; e < mine.end; ++e) {
      add(whole(hf::adapter_up(layer, e), h, d), ReplicaGroup::kExpert, true, Init::kZero, up.take(h));
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
  Arena& weights_;
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
                                 Arena& weights, Arena* optimizer) {
  ParameterBuilder(model, pesc, mesh, weights, *this).build();

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
  for (Parameter& p : all_) {
    if (!p.trained) continue;
    const auto g = static_cast<size_t>(p.group);
    const int64_t end = offset[g] + p.spec.size();
    p.grad = flat_grad_[g].col_range(offset[g], end).reshaped(p.spec.rows, p.spec.cols);
    p.exp_avg = avg[g].col_range(offset[g], end).reshaped(p.spec.rows, p.spec.cols);
    p.exp_avg_sq = avg_sq[g].col_range(offset[g], end).reshaped(p.spec.rows, p.spec.cols);
    offset[g] = end;
  }

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

void ModelParameters::initialise(Stream& stream, WeightSource* source, uint64_t seed, double init_std) {
  std::vector<float> host;
  for (const Parameter& p : all_) {
    const ShardSpec& s = p.spec;
    if (source != nullptr && p.dense) {
      host.resize(static_cast<size_t>(s.size()));
      source->read(s.name, s.global_rows, s.global_cols, s.row, s.rows, s.col, s.cols, host.data());
      copy_from_host(stream, host.data(), p.value);
      continue;
    }
    const InitPiece piece{p.value, seed, hash_name(s.name), s.row, s.col, s.global_cols};
    switch (p.init) {
      case Init::kNormal:
        init_normal(stream, piece, static_cast<float>(init_std));
        break;
      case Init::kKaimingUniform:
        init_uniform(stream, piece, static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.global_cols))));
        break;
      case Init::kZero:
        fill_zero(stream, p.value);
        break;
      case Init::kOnes: {
        host.assign(static_cast<size_t>(s.size()), 1.0F);
        copy_from_host(stream, host.data(), p.value);
        break;
      }
    }
  }
}

const Parameter& ModelParameters::find(const std::string& name) const {
  for (const Parameter& p : all_) {
    if (p.spec.name == name) return p;
  }
  throw InternalError(str_cat("no parameter '", name, "' on this rank"));
}

int64_t ModelParameters::trained_elements() const {
  int64_t n = 0;
  for (const Parameter& p : all_) n += p.trained ? p.spec.size() : 0;
  return n;
}

int64_t ModelParameters::frozen_bytes() const {
  int64_t n = 0;
  for (const Parameter& p : all_) n += p.trained ? 0 : p.value.bytes();
  return n;
}

int64_t ModelParameters::expert_bytes() const {
  int64_t n = 0;
  for (const Parameter& p : all_) n += p.trained && p.group == ReplicaGroup::kExpert ? p.value.bytes() : 0;
  return n;
}

}  // namespace pesc
