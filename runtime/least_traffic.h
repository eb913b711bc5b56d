// The bytes that a rank has to send in a training step, whatever the program: what the bench compares with what
// travels.
#pragma once

#include <string_view>

#include "model/config.h"
#include "runtime/config/experiment.h"
#include "runtime/plan.h"

namespace pesc {

// Of one rank and step. Tensor parallelism gathers the input and scatters the output of attention and FFN, in
// the forward and the backward, the output of the embedding, and the input of the head and its gradient; LoRA
// could make A x from what is gathered. The exchange is the plan's. TOKENS, with balanced routing: a row there and
// one back for each token and remote rank of its experts, with the router's weights, forward and backward. WEIGHTS: the
// adapters of each layer, gathered in the forward and in the backward, and the sum of their gradients. A gradient
// reduction moves 2 (n - 1) / n of the float32 gradients of a piece that n ranks hold. Nothing is moved to
// recompute.
struct LeastTraffic {
  double tensor_parallel = 0, exchange = 0, gradients = 0;
};
[[nodiscard]] LeastTraffic least_traffic(const ExperimentConfig& config, const ModelConfig& model, int world);
// The plan of a step for the bytes that it sends; its times are of no machine.
[[nodiscard]] Plan plan_of_traffic(const ExperimentConfig& config, const ModelConfig& model, int world);

// The phases of a plan (runtime/plan.h) that send.
inline constexpr const char* kTensorParallelPhase = "tensor-parallel gathers";
inline constexpr const char* kGradientPhase = "gradient reduction";
// "token exchange": tokens go to the ranks of their experts. Every phase of the ep group has such a name.
[[nodiscard]] inline bool is_exchange(std::string_view phase) {
  return phase.ends_with(" exchange");
}
[[nodiscard]] inline bool sends(std::string_view phase) {
  return phase == kTensorParallelPhase || phase == kGradientPhase || is_exchange(phase);
}

}  // namespace pesc
