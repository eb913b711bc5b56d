#include "model/parameters.h"

#include <vector>

#include "model/parameter_builder.h"
#include "ops/core/check.h"

namespace pesc {

ModelParameters::ModelParameters(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                                 const Precision& precision, const Arenas& arenas) {
  ParameterBuilder builder(model, pesc, mesh, precision, arenas, *this);
  builder.build();
  if (arenas.optimizer != nullptr) builder.build_gradients(*arenas.optimizer);
}

const Parameter& ModelParameters::find(const std::string& name) const {
  for (const Parameter& p : all_) {
    if (p.spec.name == name) return p;
  }
  throw InternalError(str_cat("no parameter '", name, "' on this rank"));
}

std::vector<ShardSpec> ModelParameters::quantized_tensors() const {
  std::vector<ShardSpec> all;
  for (const Parameter& p : all_) {
    const ShardSpec& s = p.spec;
    if (p.held.out == 0 || !is_quantized(p.held.type.format)) continue;
    all.push_back({s.name, s.global_rows, s.global_cols, 0, s.global_rows, 0, s.global_cols});
  }
  return all;
}

Tensor ModelParameters::layer_grads(ReplicaGroup group, int64_t begin, int64_t end) const {
  const std::vector<int64_t>& at = layer_begin_[static_cast<size_t>(group)];
  return flat_grad(group).col_range(at.at(static_cast<size_t>(begin)), at.at(static_cast<size_t>(end)));
}

Tensor ModelParameters::other_grads(ReplicaGroup group) const {
  return flat_grad(group).col_range(0, layer_begin_[static_cast<size_t>(group)].front());
}

int64_t ModelParameters::trainable_elements() const {
  int64_t n = 0;
  for (const Parameter& p : all_) n += p.trainable ? p.spec.size() : 0;
  return n;
}

double ModelParameters::frozen_bytes_per_weight() const {
  int64_t bytes = 0, weights = 0;
  for (const Parameter& p : all_) {
    if (p.held.out == 0) continue;
    bytes += p.held.bytes();
    weights += p.spec.size();
  }
  return weights > 0 ? static_cast<double>(bytes) / static_cast<double>(weights) : 0;
}

FrozenGemm ModelParameters::frozen_gemm() const {
  return fp8_share() > 0 ? FrozenGemm::kFP8 : FrozenGemm::kDequantized;
}

double ModelParameters::fp8_share() const {
  int64_t fp8 = 0, weights = 0;
  for (const Parameter& p : all_) {
    if (p.held.out == 0) continue;
    weights += p.spec.size();
    if (p.held.type.gemm == FrozenGemm::kFP8) fp8 += p.spec.size();
  }
  return weights > 0 ? static_cast<double>(fp8) / static_cast<double>(weights) : 0;
}

}  // namespace pesc
