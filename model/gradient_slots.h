// Maps the gradient tensors in the model's structs to parameters. The parameter builder registers a slot for
// each value, in any order. Once the gradients are allocated, `fill` points every slot to its gradient.
#pragma once

#include <cstddef>
#include <map>
#include <vector>

#include "ops/core/tensor.h"

namespace pesc {

struct Parameter;

class GradientSlots {
 public:
  // `slot` becomes the gradient of parameter number `parameter` of the table; of several, when it is added
  // for several: their gradients stacked by rows, in the table's order. A parameter may have several slots.
  // The slot must stay where it is until `fill`.
  void add(size_t parameter, Tensor& slot) { members_[&slot].push_back(parameter); }
  // Slots of frozen parameters become absent tensors. Throws InternalError, which names a parameter, where a
  // trainable one has no slot, or where the gradients of one slot are no stack in memory.
  void fill(const std::vector<Parameter>& all) const;

 private:
  std::map<Tensor*, std::vector<size_t>> members_;
};

}  // namespace pesc
