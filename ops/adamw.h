// AdamW with decoupled weight decay (Loshchilov & Hutter, 2019) on flat float32 buffers, as torch.optim.AdamW
// does it.
#pragma once

#include <cstdint>
#include <span>

#include "ops/core/device.h"

namespace pesc {

// The update of one parameter.
// REQUIRES: param, grad, exp_avg and exp_avg_sq are contiguous and of one size. With g = grad_scale * grad:
//   exp_avg = beta1 exp_avg + (1 - beta1) g;  exp_avg_sq = beta2 exp_avg_sq + (1 - beta2) g^2
//   param -= lr (weight_decay param + m / (sqrt(v) + eps)),  m, v: the bias-corrected moments of `step`
struct AdamW {
  Tensor param;             // [1, n] F32 master weights, updated
  Tensor grad;              // [1, n] F32
  Tensor exp_avg;           // [1, n] F32, updated
  Tensor exp_avg_sq;        // [1, n] F32, updated
  Tensor compute_weight{};  // [rows, n / rows] BF16, any row stride, written with `param` rounded; optional
  double lr = 0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  int64_t step = 1;      // 1 at the first update
  float grad_scale = 1;  // the clipping factor, applied to the gradient first
};
// All of `updates`, of which no two may share memory: a GPU takes many in one launch.
void adamw(Stream& stream, std::span<const AdamW> updates);

// The settings of an update in float32, as each element takes them: computed in float64.
struct AdamWScalars {
  float decay, beta1, rest1, beta2, rest2, rate, inverse_root2, eps, grad_scale;
};
[[nodiscard]] AdamWScalars adamw_scalars(const AdamW& update);

}  // namespace pesc
