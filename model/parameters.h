// The table of the model's parameters: name, global shape, this rank's piece, frozen or trainable, the ranks
// that hold the same piece, and the initial value. Loading, gradient reduction, the optimizer, checkpoints
// and export read it.
//
// The frozen weights of the linears are FrozenLinears, in a format of their own. Embeddings and the head are
// in the compute type (F32 or BF16). Norms, biases and routers are F32. A trainable parameter is F32; a
// trainable matrix also has a rounded compute_weight when the compute type is BF16, which the optimizer and
// refresh_compute_weights write. LoRA's B is concatenated to the frozen weights where the format allows it.
//
// Local letters: HQ, HK query and KV heads on this rank, D head_dim, H hidden, F FFN columns on this rank, V
// vocabulary rows on this rank, r LoRA rank, d adapter size, E experts on this rank.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "model/config.h"
#include "model/frozen_linear.h"
#include "model/weight_source.h"
#include "ops/core/arena.h"
#include "parallel/gradient_reduction.h"
#include "parallel/mesh.h"
#include "parallel/shard_spec.h"

namespace pesc {

enum class Init {
  kNormal,          // dense weights without a checkpoint: N(0, initializer_range)
  kOnes,            // RMSNorm weights without a checkpoint
  kZero,            // LoRA B, adapter up; biases without a checkpoint
  kKaimingUniform,  // LoRA A, router, adapter down: uniform within 1/sqrt(fan_in)
};

struct Parameter {
  ShardSpec spec;  // the name is the Hugging Face one; PESC and LoRA names as in tests/goldens/README.md
  ReplicaGroup group = ReplicaGroup::kWorld;
  bool trainable = false;
  bool dense = false;  // a parameter of the dense base model
  Init init = Init::kNormal;
  // [rows, cols] of this rank's piece; F32 when trainable, and contiguous. No data where `held` is quantised.
  Tensor master;
  FrozenLinear held;      // of a frozen linear: its format, and the same memory as `master`
  Tensor compute_weight;  // `master` rounded to BF16, which the model computes with; no data in float32
  Tensor grad;            // trainable: the same shape, inside the group's flat gradient buffer
  Tensor exp_avg;         // trainable: AdamW's first moment
  Tensor exp_avg_sq;      // trainable: AdamW's second moment
};

// Linears that read the same input and are split by output columns over tp, stacked by rows: q,k,v or
// gate,up.
struct ColumnLinears {
  struct Part {
    Linear linear = Linear::kQ;
    int64_t begin = 0, end = 0;  // rows of `base`, columns of the output
    Tensor dweight, dbias;       // mode FULL
    int64_t lora_begin = -1;  // column of this part's r columns in the stacked LoRA activations; -1: no LoRA
    Tensor lora_b, dlora_b;   // [end - begin, r]
  };
  FrozenLinear base;       // [out, H]; where B is concatenated, each part's is in its rows and columns
  Tensor bias;             // [1, out] or absent
  Tensor lora_a, dlora_a;  // [R, H], R = r * parts with LoRA
  std::vector<Part> parts;
  [[nodiscard]] int64_t lora_columns() const { return lora_a.rows; }
  [[nodiscard]] int64_t concat_columns() const { return base.lora_columns(); }
};

// A linear that is split by input columns over tp: o or down.
struct RowLinear {
  Linear linear = Linear::kO;
  FrozenLinear base;       // [H, in]; B may be concatenated to it
  Tensor dweight;          // [H, in], mode FULL
  int64_t column0 = 0;     // global input column of local column 0
  Tensor lora_a, dlora_a;  // [r, in]
  Tensor lora_b, dlora_b;  // [H, r]
  [[nodiscard]] int64_t lora_columns() const { return lora_a.rows; }
  [[nodiscard]] int64_t concat_columns() const { return base.lora_columns(); }
};

struct MoeParameters {
  Tensor router, drouter;  // [experts, H] F32
  Tensor down, ddown;      // [E * d, H]
  Tensor up, dup;          // [E * H, d]
};

struct LayerParameters {
  Tensor input_norm, dinput_norm;  // [1, H]
  Tensor post_norm, dpost_norm;    // [1, H]
  Tensor q_norm, dq_norm;          // [1, D] of each head of q; absent in families without it
  Tensor k_norm, dk_norm;          // [1, D] of each head of k; likewise
  ColumnLinears qkv;               // out = (HQ + 2 HK) * D
  RowLinear o;                     // in = HQ * D
  ColumnLinears gate_up;           // out = 2 F
  RowLinear down;                  // in = F
  MoeParameters moe;               // absent without experts
};

// The compute type, and how the linears' frozen weights are held and multiplied.
struct Precision {
  DType compute = DType::kF32;  // F32 or BF16
  FrozenType frozen;
  Precision(DType type) : Precision(type, plain_format(type)) {}  // NOLINT: held as computed with
  Precision(DType type, FrozenFormat format, FrozenGemm gemm = FrozenGemm::kDequantized)
      : compute(type), frozen(format, type, gemm) {}
};

class ModelParameters {
 public:
  struct Arenas {
    Arena& weights;          // values
    Arena& compute_weights;  // of trainable values, in a BF16 compute type
    Arena* optimizer;        // gradients and moments; null: none are kept, for inference
  };
  // Lays out this rank's pieces. With planning arenas nothing is allocated and only the shapes hold.
  ModelParameters(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                  const Precision& precision, const Arenas& arenas);

  // Writes all masters: dense ones from `source` if given, and experts and LoRA that it has; all others by their
  // `init`. Also writes the compute weights. `loaded` is called with the number of values of each slice that has been read.
  void initialise(Stream& stream, WeightSource* source, uint64_t seed, double initializer_range,
                  const std::function<void(int64_t values)>& loaded = {});
  // Rounds the masters of trainable parameters to their compute weights. Call it after every change of them
  // that the optimizer did not make.
  void refresh_compute_weights(Stream& stream) const;

  // Sets replica and replicas of every piece; `lookup` returns the pair for a group.
  template <class Lookup>
  void set_replicas(const Lookup& lookup) {
    for (Parameter& p : all_) std::tie(p.spec.replica, p.spec.replicas) = lookup(p.group);
  }

  [[nodiscard]] const std::vector<Parameter>& all() const { return all_; }
  [[nodiscard]] const Parameter& find(
      const std::string& name) const;  // InternalError when this rank has no such piece
  [[nodiscard]] const Tensor& flat_grad(ReplicaGroup group) const {
    return flat_grad_[static_cast<int>(group)];
  }
  // The names and global shapes of the frozen weights that are held quantised, in the table's order.
  [[nodiscard]] std::vector<ShardSpec> quantized_tensors() const;
  // The parts of flat_grad of layers [begin, end), and of no layer; [1, n].
  [[nodiscard]] Tensor layer_grads(ReplicaGroup group, int64_t begin, int64_t end) const;
  [[nodiscard]] Tensor other_grads(ReplicaGroup group) const;
  [[nodiscard]] int64_t trainable_elements() const;  // of this rank
  // Bytes of the frozen linears over their weights, scales included: 2 in BF16. 0 in mode FULL.
  [[nodiscard]] double frozen_bytes_per_weight() const;
  // What the frozen linears are multiplied as: FP8 if any is.
  [[nodiscard]] FrozenGemm frozen_gemm() const;
  // The share of the frozen linears' weights that is multiplied in FP8: less than 1 where a quantised folder left some plain.
  [[nodiscard]] double fp8_share() const;

  Tensor embedding, dembedding;  // [V, H]
  Tensor head, dhead;            // [V, H]; the embedding itself where they are tied
  Range vocab;                   // global ids of the local rows
  Tensor final_norm, dfinal_norm;
  std::vector<LayerParameters> layers;

 private:
  friend class ParameterBuilder;
  // A quantised frozen weight, from `source` or at random.
  static void initialise_quantized(Stream& stream, const Parameter& p, WeightSource* source, uint64_t seed,
                                   double initializer_range);
  std::vector<Parameter> all_;
  std::vector<size_t> first_of_layer_;  // in all_
  Tensor flat_grad_[kReplicaGroups];
  std::array<std::vector<int64_t>, kReplicaGroups> layer_begin_;  // [layers + 1] in the flat gradients
};

}  // namespace pesc
