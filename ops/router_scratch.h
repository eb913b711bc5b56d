// The router's scratch on a GPU: a function of sizes alone, so that a plan needs no GPU. Letters as in
// ops/router.h.
//
// Beside bf16 activations a product takes bf16. A float32 number is the sum of kRouterParts of those, so that
// the parts of a factor give its product in float32: [kRouterParts E] rows or columns for E.
#pragma once

#include "ops/core/arena.h"

namespace pesc {

inline constexpr int64_t kRouterParts = 3;

struct RouterScratch {
  int64_t parts;  // 1: the products are float32 themselves
  Tensor factor;  // BF16: the router's weight [P E, H] or, backward, dlogits [T, P E]; absent where P is 1
  Tensor
      product;  // F32: the logits [T, P E] or, backward and where P is not 1, the weight's gradient [P E, H]

  RouterScratch(Arena& scratch, int64_t tokens, int64_t experts, int64_t hidden, DType activations,
                bool backward)
      : parts(activations == DType::kBF16 ? kRouterParts : 1) {
    const int64_t all = parts * experts;
    if (parts > 1) factor = scratch.allocate(backward ? tokens : all, backward ? all : hidden, DType::kBF16);
    if (parts > 1 || !backward) product = scratch.allocate(backward ? all : tokens, backward ? hidden : all);
  }
};

}  // namespace pesc
