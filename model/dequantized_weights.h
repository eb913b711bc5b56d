// A base as a run on quantised frozen weights has it: the values of its linears are those that their codes stand for,
// all other values its own. What CPU ranks compute with, in float32.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/frozen_linear.h"
#include "model/quantized_tensor.h"
#include "model/weight_source.h"
#include "ops/core/device.h"

namespace pesc {

class DequantizedWeights : public WeightSource {
 public:
  // `quantized`: ModelParameters::quantized_tensors(). `base` outlives this object.
  DequantizedWeights(WeightSource& base, const Stream& threads, FrozenFormat format,
                     const std::vector<ShardSpec>& quantized);
  [[nodiscard]] int64_t bytes_read() const override { return base_.bytes_read(); }
  [[nodiscard]] bool has(const std::string& name) const override { return base_.has(name); }
  // Of a quantised tensor whole rows alone. In NF4 the first piece of a tensor, and one of another tensor than the
  // piece before, reads all of it.
  void read(const ShardSpec& piece, float* to) override;

 private:
  WeightSource& base_;
  Stream threads_;
  FrozenFormat format_;
  std::map<std::string, ShardSpec> quantized_;
  std::string name_;  // of tensor_
  std::optional<QuantizedTensor> tensor_;
};

}  // namespace pesc
