// RMSNorm of each head by itself, as Qwen3 norms q and k: of the D columns x of a head y = x * rstd * weight,
// rstd = 1 / sqrt(mean(x^2) + eps). All heads share the weight. The mean is taken in float32 or better.
// T tokens, N heads, D head_dim.
#pragma once

#include "ops/core/device.h"

namespace pesc {

struct HeadNormForward {
  Tensor x;       // [T, N * D], any row stride
  Tensor weight;  // [1, D] F32
  float eps = 1e-6F;
  Tensor y;     // [T, N * D] written, any row stride; may be x
  Tensor rstd;  // [T, N] F32 written, any row stride
};
void head_norm_forward(Stream& stream, const HeadNormForward& args);

struct HeadNormBackward {
  Tensor dy;       // [T, N * D], any row stride
  Tensor x;        // [T, N * D], any row stride
  Tensor weight;   // [1, D] F32
  Tensor rstd;     // [T, N] F32, as head_norm_forward wrote it
  Tensor dx;       // [T, N * D] written, any row stride; may be dy
  Tensor dweight;  // [1, D] F32, added to; optional: the weight is frozen
};
void head_norm_backward(Stream& stream, const HeadNormBackward& args);

}  // namespace pesc
