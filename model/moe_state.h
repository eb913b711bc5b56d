// The state that a phase of MoeLayer returns and the next phase consumes. It can be moved but not copied, and
// only MoeLayer creates it. So phases in another order do not compile; a state that was consumed already, or
// that is another layer's, throws InternalError. It carries the tensor that the phases share: y in the
// forward, dy in the backward.
#pragma once

#include <utility>

#include "ops/core/tensor.h"

namespace pesc {

class MoeLayer;

template <class Phase>
class MoeState {
 public:
  MoeState(MoeState&& other) noexcept
      : layer_(std::exchange(other.layer_, nullptr)), tensor_(other.tensor_) {}
  MoeState& operator=(MoeState&& other) noexcept {
    layer_ = std::exchange(other.layer_, nullptr);
    tensor_ = other.tensor_;
    return *this;
  }
  MoeState(const MoeState&) = delete;
  MoeState& operator=(const MoeState&) = delete;
  ~MoeState() = default;

 private:
  friend class MoeLayer;
  explicit MoeState(const MoeLayer& layer, const Tensor& tensor = {}) : layer_(&layer), tensor_(tensor) {}
  const MoeLayer* layer_;  // null once consumed
  Tensor tensor_;
};

}  // namespace pesc
