// RMSNorm (Zhang & Sennrich, 2019): y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps), per token.
// T tokens, H hidden. The mean is taken in float32 or better.
#pragma once

#include "ops/dropout.h"
#include "ops/fp8.h"
#include "ops/low_rank.h"

namespace pesc {

// With `residual`, x_out = x + residual is written first and then normalised (the fused residual). x_out may
// alias x.
struct RmsNormForward {
  Tensor x;         // [T, H]
  Tensor residual;  // [T, H], optional
  Tensor x_out;     // [T, H], written when residual is given
  Tensor weight;    // [1, H]
  float eps = 1e-5F;
  Tensor y;               // [T, H] written, any row stride; optional where dropped and codes are given
  Tensor rstd;            // [1, T] written
  DroppedCopy dropped{};  // [T, H]: dropout(y), optional
  Fp8Rows codes{};        // [T, H]: of y, optional
};
void rmsnorm_forward(Stream& stream, const RmsNormForward& args);

// Recomputes y from the saved rstd, bit for bit as rmsnorm_forward wrote it, and dropped.y = dropout(y).
// Either is optional.
void rmsnorm_apply(Stream& stream, const Tensor& x, const Tensor& weight, const Tensor& rstd, const Tensor& y,
                   const DroppedCopy& dropped = {});

// The backward. The gradient of y is dy + dropped + low_rank; the last two terms are optional. REQUIRES: the
// weight is frozen (no dweight) when either term is given.
struct RmsNormBackward {
  Tensor dy;               // [T, H]; clobbered when `dropped` or `low_rank` is given
  Tensor x;                // [T, H]
  Tensor weight;           // [1, H]
  Tensor rstd;             // [1, T]
  Tensor dx;               // [T, H], added to
  Tensor dweight;          // [1, H], added to; optional: the weight is frozen
  DroppedTerm dropped{};   // [T, H]
  LowRankTerm low_rank{};  // [T', H]: of the first T' <= T tokens
};
void rmsnorm_backward(Stream& stream, const RmsNormBackward& args);

}  // namespace pesc
