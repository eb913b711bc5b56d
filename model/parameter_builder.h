// Lays out the parameters of one rank: adds them to the table, allocates their memory, and registers a
// gradient slot for each.
#pragma once

#include <span>
#include <string>

#include "model/gradient_slots.h"
#include "model/parameters.h"

namespace pesc {

class ParameterBuilder {
 public:
  ParameterBuilder(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                   const Precision& precision, const ModelParameters::Arenas& arenas, ModelParameters& out);

  // The values, in the order of the table.
  void build();
  // After build(): gradients and moments of what is trainable, flat per replica group in the order of the
  // table, so that what is stacked in values is stacked in gradients too; and the slots.
  void build_gradients(Arena& optimizer);

 private:
  enum class Kind { kFrozen, kTrainable };
  enum class BiasTerm { kAbsent, kPresent };
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
  struct Cut {  // how a column-parallel linear is cut over tp
    int64_t global = 0, begin = 0, count = 0;
    ReplicaGroup group = ReplicaGroup::kDp;
  };

  [[nodiscard]] Kind dense_kind() const { return full_ ? Kind::kTrainable : Kind::kFrozen; }
  [[nodiscard]] bool lora(Linear linear) const { return !full_ && pesc_.lora.on(linear); }

  // A matrix that GEMMs read.
  Held matrix(int64_t rows, int64_t cols, Kind kind);
  // How the weights of linears that are stacked are held: plain where a quantised folder left one of them so.
  [[nodiscard]] FrozenType held_as(int64_t layer, std::span<const Linear> linears) const;
  // The weight of a linear with so many columns of LoRA's B: frozen, or trainable in mode FULL. Without data
  // where it is quantised.
  Held base(const FrozenType& type, int64_t out, int64_t in, int64_t lora_columns, FrozenLinear& base);
  // LoRA's B. Its compute weight is in `place` if that has data.
  Held lora_b(int64_t rows, const Tensor& place);
  // A norm, a bias or a router: F32 whatever the compute type.
  Held exact(int64_t rows, int64_t cols);

  // Adds a parameter to the table, with `grad` as its gradient slot. Returns the tensor that the model
  // computes with.
  Tensor add(ShardSpec spec, ReplicaGroup group, Kind kind, Init init, const Held& held, Tensor& grad);
  // A dense tensor: trainable in mode FULL only.
  Tensor dense(ShardSpec spec, ReplicaGroup group, const Held& held, Tensor& grad, Init init = Init::kNormal);
  Tensor vocab_table(const std::string& name, Tensor& grad);
  Tensor norm(const std::string& name, int64_t columns, Tensor& grad);

  [[nodiscard]] Cut column_cut(Linear linear) const;
  void build_columns(int64_t layer, std::span<const Linear> linears, BiasTerm bias, ColumnLinears& out);
  void build_column_lora(int64_t layer, int64_t columns, ColumnLinears& out);  // columns: R
  void build_row(int64_t layer, Linear linear, int64_t global_in, RowLinear& out);
  void build_moe(int64_t layer, MoeParameters& out);
  void build_layer(int64_t layer, LayerParameters& out);

  const ModelConfig& model_;
  const PescConfig& pesc_;
  const Mesh& mesh_;
  Precision precision_;
  const ModelParameters::Arenas& arenas_;
  ModelParameters& out_;
  bool full_;
  int64_t heads_ = 0, kv_heads_ = 0;  // of this rank
  int kv_parts_ = 1, kv_index_ = 0;
  GradientSlots slots_;
};

}  // namespace pesc
