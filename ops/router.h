// The router of PESC (Wu et al., 2024; model/README.md): logits = x R^T in float32; S = the top-k experts in
// falling order of their logits, ties to the lower expert; weights = softmax over the logits of S. It also
// adds up the statistics of the aux loss over the real tokens. T tokens, H hidden, E experts, k choices.
#pragma once

#include "ops/core/arena.h"

namespace pesc {

enum class Routing { kTopK, kReplay };  // kReplay: reads the choice of a recorded run from `topk_indices`

struct RouterForward {
  Tensor x;             // [T, H]
  Tensor weight;        // [E, H] F32
  Tensor probs;         // [T, E] F32 written: softmax over all experts
  Tensor topk_indices;  // [T, k] I32 written (read with kReplay)
  Tensor topk_weights;  // [T, k] F32 written
  Tensor stats;         // [2, E] F32 added to: row 0 assignments per expert, row 1 sum of probs
  Routing routing = Routing::kTopK;
};
void router_forward(Stream& stream, const RouterForward& args, Arena& scratch);

// The backward. With dw the gradient of the k weights and g_i = aux_loss_grad_i = d loss / d prob_(t,i), the
// same for every token:
//   dlogits_S = w (dw - sum w dw);  dlogits += p (g - sum p g);  dweight += dlogits^T x;  dx += dlogits R
// dx is not written here: the caller adds the low-rank term {dlogits, R} (ops/low_rank.h) to it. `x` is the
// router's input. With `rstd`, `x` is instead the input of the RMSNorm before the router, and the router's
// input is x * rstd * norm, so that it need not be recomputed.
struct RouterBackward {
  Tensor x;              // [T, H]
  Tensor weight;         // [E, H]
  Tensor probs;          // [T, E]
  Tensor topk_indices;   // [T, k]
  Tensor topk_weights;   // [T, k]
  Tensor dtopk_weights;  // [T, k]
  Tensor aux_loss_grad;  // [1, E]
  Tensor dweight;        // [E, H], added to
  Tensor dlogits;        // [T, E] F32, written
  Tensor rstd{};         // [1, T] F32, optional
  Tensor norm{};         // [1, H], with rstd: the norm's weight
};
void router_backward(Stream& stream, const RouterBackward& args, Arena& scratch);

// The aux loss of a whole micro-batch, from stats [2, E], summed over all ranks, and the number of real
// tokens:
//   share_i = assignments_i / (tokens * k);  mean_prob_i = sum of probs_i / tokens
//   loss = E * sum_i share_i * mean_prob_i;  aux_loss_grad_i = coef * E * share_i / tokens
// Writes loss [1, 1] and aux_loss_grad [1, E]; with no tokens both are 0.
void router_aux_loss(Stream& stream, const Tensor& stats, double tokens, int64_t top_k, double coef,
                     const Tensor& loss, const Tensor& aux_loss_grad);

// Bytes that either call may take from `scratch`. `activations` is the element type of x (F32 on the CPU).
[[nodiscard]] int64_t router_scratch_bytes(const Device& device, int64_t tokens, int64_t experts,
                                           int64_t hidden, DType activations = DType::kF32);

}  // namespace pesc
