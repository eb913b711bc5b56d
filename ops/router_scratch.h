// The router's scratch on a GPU, as a function of sizes only, so that `pesc plan` needs no GPU. Letters as in
// ops/router.h.
//
// With bf16 activations a GEMM takes bf16 operands only. A float32 factor is written as the sum of
// kRouterParts bf16 parts, stacked along E; the sum of the parts' results has float32 precision.
#pragma once

#include "ops/core/arena.h"

namespace pesc {

inline constexpr int64_t kRouterParts = 3;

struct RouterScratch {
  int64_t parts;  // P: kRouterParts with bf16 activations; 1: the GEMMs are in float32
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
