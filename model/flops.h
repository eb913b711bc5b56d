// The FLOP that the mathematics of a training step needs, without padding. Over a GEMM rate they give the
// speed of light of the step (tests/bench/README.md).
//   frozen linears           4 per weight and token (forward and input gradient); 6 where they are trained
//   LoRA, router, adapters   6 per weight that the token passes
//   causal attention         3.5 * 4 * length * heads * head_dim / 2 per token and layer
//   head                     4 * hidden * vocab per supervised token; 6 where it is trained
#pragma once

#include <cstdint>

#include "model/config.h"

namespace pesc {

struct StepTokens {
  double tokens = 0;
  double supervised = 0;
  double squared_lengths = 0;  // sum over sequences of length^2
};
[[nodiscard]] double training_flops(const ModelConfig& model, const PescConfig& pesc, const StepTokens& step);
// Those of the frozen linears, which quantised formats may multiply in FP8. 0 in mode FULL.
[[nodiscard]] double frozen_linear_flops(const ModelConfig& model, const PescConfig& pesc, double tokens);

}  // namespace pesc
